"""Pages in frames: a browser opens no window narrower than 500 pixels, and starting it takes longer than a page."""

import html
import json
import re

PAGE = """<!DOCTYPE html><body><p></p>{frames}<script>
const all = [], p = document.querySelector("p");
onmessage = ({{ data }}) => {{ all.push(data); if (all.length === {count}) p.textContent = JSON.stringify(all); }};
</script></body>"""


def framed(pages: list[tuple[str, int]]) -> str:
    """A page with others in it: their addresses, and how many pixels wide they are."""
    frames = (f'<iframe src="{address}" style="width:{width}px;height:900px"></iframe>' for address, width in pages)
    return PAGE.format(frames="".join(frames), count=len(pages))


def posted(dom: str) -> list:
    """What each page in a frame posted to that one, after a browser has run all."""
    return json.loads(html.unescape(re.search(r"<p>(.*?)</p>", dom, re.S)[1]))
