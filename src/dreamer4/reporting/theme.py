"""The look of a report: one style sheet, light and dark, from a phone to a wide screen, and for print."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #faf9f6; --card: #ffffff; --ink: #1c1e21; --soft: #5d626b; --line: #e4e1da;
  --s1: #0b7a75; --s2: #3566c8; --s3: #a8478f; --s4: #b06a0d; --s5: #567a26; --control: #8b8f97; --tint: #0b7a7514;
  --bad: #c8402f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #121417; --card: #1a1d21; --ink: #e8e6e1; --soft: #9ea3ac; --line: #2d3137;
    --s1: #4cc9bd; --s2: #7ea8f8; --s3: #dd92cc; --s4: #e8aa58; --s5: #a6c86c; --control: #7d828b; --tint: #4cc9bd1a;
    --bad: #f57f70;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4rem) clamp(1.1rem, 4vw, 2.5rem) 4rem; }
h1 { font-size: clamp(1.65rem, 4.5vw, 2.3rem); line-height: 1.2; letter-spacing: -0.02em; font-weight: 650; margin: 0; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; font-weight: 650; margin: 0 0 .35rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 2rem 0 .6rem; }
h3::first-letter { text-transform: uppercase; }
p { margin: 0 0 1rem; max-width: 42rem; }
p, figcaption { text-wrap: pretty; }
section { margin-top: 3.6rem; }
.lead { font-size: 1.12rem; line-height: 1.55; margin: 1.1rem 0 0; }
.facts { color: var(--soft); margin: .5rem 0 0; font-size: .95rem; overflow-wrap: anywhere; }
.note, figcaption, .empty { color: var(--soft); font-size: .9rem; line-height: 1.5; }
.empty { margin: 1.5rem 0; }
figure { margin: 1.2rem 0 0; }
figcaption { margin-top: .7rem; max-width: 42rem; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.2rem clamp(1rem, 3vw, 1.6rem);
}
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .9rem 1.1rem; }
.tiles b { display: block; font-size: 1.6rem; font-weight: 620; letter-spacing: -0.02em; line-height: 1.3; }
.tiles span { display: block; color: var(--soft); font-size: .85rem; line-height: 1.4; }
.tiles b, table, .value, .scale, .tick { font-variant-numeric: tabular-nums; }

.intervals .row {
  display: grid; grid-template-columns: minmax(6.6rem, 11rem) 1fr 3.6rem; gap: .9rem; align-items: stretch;
}
.intervals .name { padding: .55rem 0; line-height: 1.35; color: var(--soft); align-self: center; }
.intervals .value { line-height: 1.35; text-align: right; color: var(--soft); align-self: center; }
.intervals .strong .name, .intervals .strong .value { color: var(--ink); font-weight: 620; }
.intervals .track { position: relative; }
.intervals i { position: absolute; font-style: normal; }
.intervals i.grid { top: 0; bottom: 0; width: 1px; background: var(--line); }
.intervals i.bar {
  top: 50%; height: 4px; margin-top: -2px; min-width: 2px; border-radius: 2px; background: var(--control);
}
.intervals i.point {
  top: 50%; width: 12px; height: 12px; margin: -6px 0 0 -6px; border-radius: 50%;
  background: var(--control); border: 2px solid var(--card);
}
.intervals .strong i.bar, .intervals .strong i.point { background: var(--s1); }
.intervals .strong i.point { width: 16px; height: 16px; margin: -8px 0 0 -8px; }
.intervals .scale { height: 1.7rem; color: var(--soft); font-size: .8rem; }
.intervals .scale i { transform: translateX(-50%); top: .25rem; white-space: nowrap; }

.intervals.bars .row { grid-template-columns: 3rem 1fr 3.6rem; }
.intervals.bars .name { padding: .15rem 0; }
.intervals.bars i.bar { height: .7rem; margin-top: -.35rem; background: var(--s1); border-radius: 3px; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: .85rem; }
th, td { padding: .5rem 1.2rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 620; }
.pairs td:first-child { color: var(--soft); white-space: nowrap; width: 1%; padding-right: 2rem; }
.pairs td { overflow-wrap: anywhere; }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17.5rem, 100%), 1fr)); gap: .8rem; }
.charts figure { margin: 0; padding: .9rem .9rem .6rem; }
.charts .title { font-size: .9rem; font-weight: 600; overflow-wrap: anywhere; line-height: 1.35; margin-bottom: .4rem; }
.charts .title small {
  color: var(--soft); font-weight: 400; font-size: .8rem; margin-left: .4rem; white-space: nowrap;
}
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--control); stroke-width: 1; }
.tick { fill: var(--soft); font-size: 10.5px; }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.faint { stroke-width: 1; opacity: .3; }
.line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); } .line.s3 { stroke: var(--s3); }
.line.s4 { stroke: var(--s4); } .line.s5 { stroke: var(--s5); }
.line.control { stroke: var(--control); stroke-dasharray: 5 4; }
.line.control2 { stroke: var(--control); stroke-dasharray: 1 4; }
.line.control3 { stroke: var(--control); stroke-dasharray: 11 4; }
.line.control4 { stroke: var(--control); stroke-dasharray: 9 4 1 4; }
.line.band { stroke: var(--control); stroke-width: 7; opacity: .3; } .dot.band { fill: none; }
.line.over { stroke-dasharray: 5 5; }
.dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); } .dot.s3 { fill: var(--s3); }
.dot.s4 { fill: var(--s4); } .dot.s5 { fill: var(--s5); }
.dot.control, .dot.control2, .dot.control3, .dot.control4 { fill: var(--control); }
.area { stroke: none; opacity: .16; }
.area.s1 { fill: var(--s1); } .area.s2 { fill: var(--s2); } .area.s3 { fill: var(--s3); }
.line.bad { stroke: var(--bad); } .area.bad { fill: var(--bad); } .dot.bad { fill: var(--bad); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: .9rem 0 0; color: var(--soft); font-size: .9rem; }
.legend svg.swatch { display: inline-block; width: 22px; margin-right: .5rem; vertical-align: middle; }
td svg.swatch { display: inline-block; width: 22px; margin-right: .6rem; vertical-align: middle; }
.beside {
  display: grid; grid-template-columns: minmax(0, 27rem) minmax(13rem, 1fr); gap: 1rem 2.5rem; align-items: center;
}
.apart { margin-top: 1.6rem; }

.frames { display: flex; flex-wrap: wrap; gap: .8rem; }
.frames figure { margin: 0; padding: .7rem; background: #111317; border: 1px solid var(--line); border-radius: 12px; }
.frames figcaption { color: #b4b8c0; margin-top: .5rem; font-size: .82rem; }
img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; }
.key { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin: 0 .15em 0 .1em; }
.key.right { background: #2dbea5; } .key.wrong { background: #f05a50; } .key.given { background: #787e88; }

table.grids { width: auto; }
.grids th, .grids td { border: 0; padding: .22rem .3rem; vertical-align: middle; }
.grids thead th { text-align: center; }
.grids thead th:first-child { text-align: left; }
.grids tbody th { white-space: nowrap; padding-right: 1rem; }
.grids img { max-width: none; border: 3px solid #787e88; border-radius: 4px; margin: 0 auto; }
.grids img.right { border-color: #2dbea5; } .grids img.wrong { border-color: #f05a50; }

details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--soft); font-size: .95rem; padding: .3rem 0; }
summary:focus-visible { outline: 2px solid var(--s1); outline-offset: 3px; border-radius: 4px; }
details[open] > summary { margin-bottom: .7rem; }
pre {
  margin: 0; padding: 1rem 1.2rem; overflow-x: auto; border: 1px solid var(--line); border-radius: 12px;
  background: var(--card); font: .82rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
@media (max-width: 46rem) { .beside { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 34rem) {
  .intervals .row { grid-template-columns: 5.6rem 1fr 3rem; gap: .6rem; font-size: .9rem; }
  table { font-size: .84rem; }
  th { font-size: .78rem; }
  th, td { padding-right: .55rem; }
  .films figure { width: calc(50% - .4rem); padding: .5rem; }
  .films img { width: 100%; }
  .grids th, .grids td { padding: .12rem .1rem; }
  .grids tbody th { white-space: normal; padding-right: .4rem; line-height: 1.2; }
  .grids img { height: 2.3rem; border-width: 2px; border-radius: 3px; }
  section { margin-top: 2.8rem; }
}
@media print { :root { --ground: #fff; } section, figure { break-inside: avoid; } }
"""
