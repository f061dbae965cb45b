"""The metrics beside those of every report's first table: further fidelity, videos, and what needs files or another environment.

Data only; no torch. How an entry is read stands with `Metric` in the package's `__init__`.
"""

from __future__ import annotations

from ditbench.metrics import Metric

_BASELINE = "samples of the stack `none` in the same run"
_VIDEO = "videos"


def _vbench(name: str, doc: str, bounds: tuple[float, float] | None = None) -> Metric:
    return Metric(
        name=f"vbench.{name}", family="vbench", better="higher", unit="", doc=doc, bounds=bounds, asked=True, table="video",
        needs="videos under 5 s, and DITBENCH_PYTHON_VBENCH: the python of an environment with vbench 0.1.5",
        official="the package vbench 0.1.5",
    )  # fmt: skip


_OWN = "VBench's {} by the official package, on its own prompts only."
_ANY = "VBench's {} by the official package, on its own prompts or any."
_VBENCH = tuple(
    _vbench(name, text.format(name.replace("_", " ")), (0.0, 1.0))
    for name, text in {
        "subject_consistency": _ANY, "background_consistency": _ANY, "motion_smoothness": _ANY,
        "aesthetic_quality": _ANY, "imaging_quality": _ANY,
        "temporal_flickering": _OWN[:-1] + ", without the filter for static videos that its protocol puts before it.",
        "object_class": _OWN, "multiple_objects": _OWN, "human_action": _OWN, "color": _OWN, "spatial_relationship": _OWN, "scene": _OWN,
        "appearance_style": _OWN, "temporal_style": _OWN, "overall_consistency": _OWN, "dynamic_degree": _ANY,
    }.items()
)  # fmt: skip
MORE = (
    Metric(
        name="ms_ssim.vs_none",
        family="fidelity",
        better="higher",
        unit="",
        doc="Multi-scale structural similarity (five scales, the authors' weights) to the un-accelerated sample of the same noise.",
        needs=_BASELINE + ", of at least 176 pixels a side",
        bounds=(0.0, 1.0),
        against_none=True,
        table="more",
    ),
    Metric(
        name="lpips.alex_v0_1",
        family="lpips",
        better="lower",
        unit="",
        doc="LPIPS (AlexNet, version 0.1) to the un-accelerated sample of the same noise: reproduction, not quality.",
        needs=_BASELINE + ", and alexnet-owt-7be5be79.pth in the folder of DITBENCH_EXTRACTORS or torch's hub",
        against_none=True,
        official="AlexNet's and the heads' files by their sha256",
        table="more",
    ),
    Metric(
        name="vstyle.frame_mad",
        family="video",
        better="higher",
        unit="",
        doc="1 - mean absolute difference of neighbouring frames; a frozen video has 1.",
        needs=_VIDEO,
        bounds=(0.0, 1.0),
        table="video",
    ),
    Metric(
        name="vstyle.second_diff",
        family="video",
        better="lower",
        unit="",
        doc="Mean absolute second difference over three frames: flicker, with steady motion mostly taken out; a frozen video has 0.",
        needs=_VIDEO + " of at least three frames",
        bounds=(0.0, 1.0),
        table="video",
    ),
    Metric(
        name="vstyle.linear_interp_smooth",
        family="video",
        better="higher",
        unit="",
        doc="1 - mean absolute difference of every second frame to the mean of its neighbours; a frozen video has 1.",
        needs=_VIDEO + " of at least three frames",
        bounds=(0.0, 1.0),
        table="video",
    ),
    Metric(
        name="vstyle.block_motion",
        family="video",
        better="neither",
        unit="% of the shorter side",
        doc="Mean displacement of 8x8 blocks from frame to frame, by block matching; a frozen video has 0.",
        needs=_VIDEO + " of at least 16 pixels a side",
        table="video",
    ),
    Metric(
        name="vstyle.hist_consistency",
        family="video",
        better="higher",
        unit="",
        doc="Cosine of each frame's colour and gradient histograms to those of the frame before and of the first, halved sum.",
        needs=_VIDEO,
        bounds=(0.0, 1.0),
        table="video",
    ),
    Metric(
        name="tdiff_fidelity.vs_none",
        family="video",
        better="higher",
        unit="dB",
        doc="PSNR between the frame-difference maps of a video and of the un-accelerated one of the same noise, at most 100 dB: added "
        "flicker or frozen motion; its part `mae` is their mean absolute difference.",
        needs=_VIDEO + " and " + _BASELINE,
        against_none=True,
        table="video",
    ),
    Metric(
        name="motion_energy_ratio.vs_none",
        family="video",
        better="neither",
        unit="",
        doc="Mean absolute frame difference over that of the un-accelerated video of the same noise; below 1 motion was damped, above 1 "
        "motion or flicker was added.",
        needs=_VIDEO + " and " + _BASELINE,
        against_none=True,
        table="video",
    ),
    _vbench("quality", "VBench's quality score: seven dimensions, normalised and weighted by its constants."),
    _vbench("semantic", "VBench's semantic score: nine dimensions, normalised by its constants."),
    *_VBENCH,
    _vbench(
        "total",
        "VBench's total, (4 quality + semantic) / 5, of all 16 dimensions or none; damped motion can raise it, so dynamic_degree stands "
        "beside it.",
    ),
    Metric(
        name="fd.cdfvd_i3d.vs_none", family="cdfvd", better="lower", unit="", against_none=True, asked=True, table="video",
        doc="Squared Fréchet distance of I3D's logits of all videos to those of the un-accelerated ones; FVD is one to real videos.",
        needs=_VIDEO + " of at least nine frames, i3d_pretrained_400.pt, and DITBENCH_PYTHON_CDFVD: the python of an environment with "
        "cd-fvd 0.1.1",
    ),
    Metric(
        name="pickscore.v1", family="pickscore", better="higher", unit="", asked=True, table="more",
        doc="PickScore of each picture and its prompt; its part `cut` is the share of prompts cut at 77 tokens.",
        needs="pictures, and the folder pickscore_v1 in that of DITBENCH_EXTRACTORS",
        official="its weights by their sha256",
    ),
    *(
        Metric(
            name=name, family="preference", better="higher", unit="", asked=True, table="more", official="its weights by their sha256",
            doc=f"{title} of each picture and its prompt.",
            needs="pictures, its weights in the folder of DITBENCH_EXTRACTORS, and "
            f"{variable}: the python of an environment with {package}",
        )
        for name, title, variable, package in (
            ("imagereward.v1_0", "ImageReward", "DITBENCH_PYTHON_IMAGEREWARD", "image-reward 1.5"),
            ("hpsv2.v2_1", "Human preference score v2.1", "DITBENCH_PYTHON_HPSV2", "hpsv2 1.2.0"),
            ("hpsv3.v1_0", "Human preference score v3", "DITBENCH_PYTHON_HPSV3", "hpsv3 1.0.0"),
        )
    ),
)  # fmt: skip
