// Without it the page says the same: it only sorts tables, copies commands and leaves out models.
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
  const models = [...document.querySelectorAll("section.model")];
  if (models.length > 1) {
    const choice = document.createElement("select");
    choice.setAttribute("aria-label", "Models shown");
    choice.append(new Option("all models", ""), ...models.map((m) => new Option(m.querySelector("h2").textContent, m.id)));
    choice.addEventListener("change", () => models.forEach((m) => { m.hidden = choice.value !== "" && m.id !== choice.value; }));
    document.querySelector("nav").append(choice);
  }
})();
