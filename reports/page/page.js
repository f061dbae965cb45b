// Without it the page says the same: it only sorts tables, copies commands, leaves out models and lays samples over each other.
(() => {
  const number = (cell) => {
    const text = cell && !cell.classList.contains("reason") ? cell.firstChild?.textContent ?? "" : "";
    const found = text.match(/[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? parseFloat(found[0]) * (/GB/.test(text) ? 1000 : 1) : NaN;
  };
  const compare = (column, sign) => (a, b) => {
    const still = (row) => !row.classList.contains("baseline"); // what all is set against stays on top
    if (still(a) !== still(b)) return still(a) - still(b);
    const [x, y] = [a.cells[column], b.cells[column]];
    if (column === 0) return sign * x.textContent.localeCompare(y.textContent);
    const [m, n] = [number(x), number(y)];
    if (isNaN(m) || isNaN(n)) return isNaN(m) - isNaN(n);
    return sign * (m - n);
  };
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      button.title = "sort";
      head.append(button);
      button.addEventListener("click", () => {
        const sign = head.ariaSort === "descending" ? 1 : head.ariaSort === "ascending" ? -1 : column === 0 ? 1 : -1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare(column, sign)));
      });
    });
  }
  for (const code of document.querySelectorAll("code.command")) {
    const button = document.createElement("button");
    button.textContent = "copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard?.writeText(code.textContent).catch(() => {});
      getSelection().selectAllChildren(code); // where the clipboard is not to be had, at least selected
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
    code.after(" ", button);
  }
  for (const link of document.querySelectorAll("a.whole")) {
    link.addEventListener("click", (event) => { // the page's own copy: the file beside it may have stayed where the page was made
      const [head, data] = link.closest("figure").querySelector("img").src.split(",");
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      event.preventDefault();
      open(URL.createObjectURL(new Blob([bytes], { type: head.slice("data:".length, -";base64".length) })));
    });
  }
  for (const viewer of document.querySelectorAll("figure.viewer")) {
    const of = (name) => viewer.querySelector(`.${name}`);
    const [left, right, sample, split, frame, play] = ["left", "right", "sample", "split", "frame", "play"].map(of);
    const stage = of("stage");
    const [samples, frames] = [Number(viewer.dataset.samples), Number(viewer.dataset.frames)];
    const place = (i, of) => `${of > 1 ? (100 * i) / (of - 1) : 0}%`;
    right.append(...[...left.options].map((option) => option.cloneNode(true)));
    right.selectedIndex = Math.max(1, [...right.options].findIndex((option) => "chosen" in option.dataset));
    const show = () => {
      const strips = [...viewer.querySelectorAll(".strip")];
      const names = stage.querySelectorAll("span");
      [[left, of("over"), names[0], strips[0]], [right, of("under"), names[1], strips[1]]].forEach(([choice, layer, name, strip]) => {
        const option = choice.selectedOptions[0];
        for (const shown of strip ? [layer, strip] : [layer]) {
          if (shown.dataset.shows !== option.text) shown.style.backgroundImage = `url(${option.dataset.sprite})`;
          shown.dataset.shows = option.text;
          shown.style.backgroundPosition = `${shown === layer ? place(Number(frame?.value ?? 0), frames) : "0%"} ${place(sample.selectedIndex, samples)}`;
        }
        name.textContent = option.text;
        if (strip) strip.previousElementSibling.textContent = option.text;
      });
      viewer.style.setProperty("--split", `${split.value}%`);
      viewer.classList.toggle("differing", of("difference").checked);
    };
    const drag = (event) => {
      if (event.buttons !== 1) return;
      const box = stage.getBoundingClientRect();
      split.value = (100 * (event.clientX - box.left)) / box.width;
      show();
    };
    stage.addEventListener("pointerdown", drag);
    stage.addEventListener("pointermove", drag);
    viewer.addEventListener("input", show);
    let clock = null;
    play?.addEventListener("click", () => {
      play.textContent = clock ? "play" : "pause";
      clock = clock ? clearInterval(clock) : setInterval(() => { frame.value = (Number(frame.value) + 1) % frames; show(); }, 200);
    });
    viewer.hidden = false;
    show();
  }
  const models = [...document.querySelectorAll("section.model")];
  if (models.length > 1) {
    const choice = document.createElement("select");
    choice.setAttribute("aria-label", "Models shown");
    choice.append(new Option("all models", ""), ...models.map((m) => new Option(m.querySelector("h2").textContent, m.id)));
    choice.addEventListener("change", () => models.forEach((m) => { m.hidden = choice.value !== "" && m.id !== choice.value; }));
    document.querySelector("nav").append(choice);
  }
})();
