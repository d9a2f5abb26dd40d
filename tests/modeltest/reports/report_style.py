"""The CSS of the report: light and dark, from a telephone's width on."""

from __future__ import annotations

LIGHT = ("#1f6fb4", "#c75d12", "#2e8540", "#a2338f", "#8a6d00", "#5b5fc7", "#b3261e", "#0f7f86")
DARK = ("#6db3f2", "#f0a05a", "#7fce8d", "#e08bd0", "#e0c050", "#a9acf5", "#f28b82", "#5fd0d8")
BASE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --soft: #5a6068; --rule: #d9dce1 }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --text: #e6e8eb; --soft: #a2a8b0; --rule: #3a3f47 } }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1320px; margin: 0 auto; padding: 16px }
h1 { font-size: 1.6em; margin: .2em 0 }
h2 { font-size: 1.3em; margin: 1.6em 0 .4em }
h3 { font-size: 1.05em; margin: 1.4em 0 .2em }
.note { color: var(--soft); margin: .2em 0 .8em; overflow-wrap: anywhere }
.table { overflow-x: auto; margin: .4em 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap }
th { color: var(--soft); font-weight: 600 }
summary { cursor: pointer; padding: .3em 0; overflow-wrap: anywhere }
details td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 12em }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)) }
.plots { gap: 16px; margin: .6em 0 }
figure { margin: 0; max-width: 520px }
figcaption { font-weight: 600; font-size: .9em }
svg { width: 100%; height: auto; display: block }
svg text { fill: var(--soft); font-size: 11px }
svg text.row { fill: var(--text) }
text.x { text-anchor: middle }
text.y { text-anchor: end }
line { stroke-width: 3 }
line.grid { stroke: var(--rule); stroke-width: 1 }
polyline { fill: none; stroke-width: 2 }
polyline.bound { stroke-dasharray: 5 4; stroke-width: 1.2 }
.legend { margin: .8em 0 0; font-size: .9em; display: flex; flex-wrap: wrap; gap: 4px 16px }
.legend i { display: inline-block; width: 14px; height: 4px; margin-right: 6px; vertical-align: middle }
.legend i.bound { height: 0; border-top: 2px dashed var(--soft) }
"""


def style() -> str:
    """All of it, with the colours of the lines, dots and swatches of each series."""
    light, dark = (" ".join(f"--s{n}: {value};" for n, value in enumerate(values)) for values in (LIGHT, DARK))
    series = (
        f"polyline.s{n}, line.s{n} {{ stroke: var(--s{n}) }} circle.s{n} {{ fill: var(--s{n}) }}"
        f" i.s{n} {{ background: var(--s{n}) }}"
        for n in range(len(LIGHT))
    )
    themes = f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return "\n".join([BASE.strip(), themes, *series])
