"""Films in plain HTML: recorded frames with a slider. They need no kernel, no network and no notebook package."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from string import Template

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

PAGE = Template("""\
<figure class="fmdiff-film" data-film="$film" style="margin:0.5em 0">
<div style="display:flex;flex-wrap:wrap;gap:12px">$pictures</div>
<figcaption style="display:flex;flex-wrap:wrap;align-items:center;gap:8px;margin-top:6px">
<button type="button" style="display:none;width:3em" aria-label="Play or pause">&#9654;</button>
<input type="range" style="display:none;width:min(24em,60%)" min="0" max="$last" value="$start" aria-label="timestep">
<output aria-live="off" style="font-family:monospace;white-space:pre">$shown</output>
</figcaption>
<script>
for (const root of document.querySelectorAll('figure[data-film="$film"]:not([data-ready])')) {
  root.dataset.ready = "yes";
  const panels = $panels, readout = $readout;
  const images = root.querySelectorAll("img"), out = root.querySelector("output");
  const play = root.querySelector("button"), range = root.querySelector("input");
  let timer = null;
  const show = () => {
    const line = readout[range.value];
    images.forEach((img, k) => {
      img.src = panels[k][range.value % panels[k].length];  // a still panel holds one frame
      img.alt = img.dataset.title + ", " + line;
    });
    out.value = line;
    range.setAttribute("aria-valuetext", line);
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "\\u25B6"; };
  const start = () => {
    play.textContent = "\\u23F8";
    timer = setInterval(() => {
      if (!root.isConnected) return stop();
      range.value = (+range.value + 1) % readout.length;
      show();
    }, $interval);
  };
  play.onclick = () => timer ? stop() : start();
  range.oninput = () => { stop(); show(); };
  root.addEventListener("keydown", event => event.stopPropagation());  // or JupyterLab takes the arrow keys
  play.style.display = range.style.display = "";
}
</script></figure>""")
PICTURE = Template("""\
<div><div style="font-size:90%">$title</div>
<img src="$src" alt="$title, $readout" data-title="$title"
 style="height:${height}px;width:${width}px;image-rendering:$rendering"></div>""")


def encode_png(frame: np.ndarray) -> bytes:
    """Encode a uint8 picture, (H, W) grey or (H, W, 3) colour."""
    image, buffer = Image.fromarray(frame), io.BytesIO()
    if frame.ndim == 3 and (colors := image.getcolors(256)):
        image = image.quantize(len(colors))  # the same pixels in a third of the bytes
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encode_frames(frames: np.ndarray) -> list[str]:
    """Return the frames as data URIs, which hold the pictures themselves; only the first one if all are the same."""
    frames = frames[:1] if (frames == frames[0]).all() else frames
    return ["data:image/png;base64," + base64.b64encode(encode_png(frame)).decode() for frame in frames]


def rendering(frame: np.ndarray, height: int) -> str:
    """Return the CSS image-rendering: sharp pixels if a small picture is scaled up to `height`."""
    return "pixelated" if len(frame) < height else "auto"


class Filmstrip:
    """Play recorded frames in plain HTML, with a slider, a play button and the arrow keys.

    `panels` maps a title to uint8 frames (F, H, W) or (F, H, W, 3), arrays or CPU tensors; they are shown side by side,
    `height` CSS pixels high. `readout` holds one line of text for each of the F frames. `start` is the first frame to
    be shown; where scripts do not run, it stays. Play shows `fps` frames a second. Bad shapes, dtypes and starts raise
    ValueError, as do a `height` and `fps` that are not above 0.
    """

    def __init__(
        self, panels: dict[str, ArrayLike], readout: Sequence[str], height: int = 168, start: int = 0, fps: int = 10
    ):
        self.panels = {title: np.asarray(frames) for title, frames in panels.items()}
        self.readout, self.height, self.start, self.fps = list(readout), height, start, fps
        for title, frames in self.panels.items():
            is_picture = frames.ndim == 3 or (frames.ndim == 4 and frames.shape[3] == 3)
            if frames.dtype != np.uint8 or not is_picture or len(frames) != len(self.readout):
                expected = f"uint8 (F, H, W) or (F, H, W, 3) with F = {len(self.readout)}, one frame for each readout"
                raise ValueError(f"panel {title!r} is {frames.dtype} {frames.shape}; expected {expected}")
        for name, value in (("height", height), ("fps", fps)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected a number above 0")
        if start not in range(len(self.readout)):
            raise ValueError(f"start is {start}; expected a frame number from 0 to {len(self.readout) - 1}")

    def _picture(self, title: str, uris: list[str]) -> str:
        frame = self.panels[title][self.start]
        return PICTURE.substitute(
            title=html.escape(title),
            src=uris[self.start % len(uris)],
            readout=html.escape(self.readout[self.start]),
            height=self.height,
            width=round(self.height * frame.shape[1] / frame.shape[0]),
            rendering=rendering(frame, self.height),
        )

    def _repr_html_(self) -> str:
        uris = {title: encode_frames(frames) for title, frames in self.panels.items()}
        panels, readout = (json.dumps(part).replace("<", "\\u003c") for part in (list(uris.values()), self.readout))
        return PAGE.substitute(
            # The same frames give the same page.
            film=hashlib.sha256(f"{panels}{readout}{self.fps}".encode()).hexdigest()[:12],
            pictures="".join(self._picture(title, uris[title]) for title in self.panels),
            panels=panels,
            readout=readout,
            shown=html.escape(self.readout[self.start]),
            last=len(self.readout) - 1,
            start=self.start,
            interval=round(1000 / self.fps),
        )
