"""The report's style sheet: one column on a phone, two charts abreast on a desk, light, dark and print."""

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1b1f; --soft: #5c5c66; --grid: #d9d9df; --panel: #f5f5f7;
  --accent: #0b5cad; --line-0: #0072b2; --line-1: #d55e00; --line-2: #00855f; --line-3: #b8578f; --line-4: #2f9fdc;
  --line-5: #c07f00; --line-6: #6a55b8; --line-7: #6f6f76; --bar: #bfdcf2; }
@media (prefers-color-scheme: dark) { :root { --paper: #141417; --ink: #e9e9ee; --soft: #a6a6b2; --grid: #3a3a42;
  --panel: #1e1e23; --accent: #7db8f2; --line-0: #4fa8e0; --line-1: #ff8a3d; --line-2: #2fc496; --line-3: #e294c3;
  --line-4: #8fd0f7; --line-5: #f0b23c; --line-6: #a796f0; --line-7: #a9a9b0; --bar: #1d4d70; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 3rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .6rem 0 .2rem; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 2.6rem 0 .5rem; padding-top: .5rem;
  border-top: 1px solid var(--grid); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .88rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .8rem 0; font-size: .92rem; }
a { color: var(--accent); }
.wide { overflow-x: auto; margin: .5rem 0 1.1rem; }
.wide:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .8rem .32rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid);
  overflow-wrap: normal; }
td, tbody th { max-width: 19rem; overflow-wrap: break-word; min-width: 5.2rem; }
thead th:first-child, tbody th { position: sticky; left: 0; background: var(--paper); }
.long td { min-width: 8.5rem; }
thead th { font-weight: 600; border-bottom: 2px solid var(--grid); }
tbody th { font-weight: 500; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem 1.4rem; }
.charts figure { margin: 0; max-width: 34rem; break-inside: avoid; }
.charts svg { width: 100%; height: auto; display: block; }
.charts figcaption { color: var(--ink); font-weight: 600; font-size: .95rem; }
.charts .note { color: var(--soft); font-weight: 400; font-size: .86rem; display: block; }
svg { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit !important; }
.legend { list-style: none; padding: 0; margin: .4rem 0 .9rem; display: flex; flex-wrap: wrap; gap: .15rem 1.2rem;
  font-size: .9rem; }
.swatch { display: inline-block; width: 1.6rem; border-top: 3px solid; vertical-align: middle; margin-right: .45rem; }
.swatch.dashed { border-top-style: dashed; }
.photo { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.7rem, 1fr)); gap: .3rem; margin: 0 0 .9rem;
  max-width: calc(var(--count) * 10rem); break-inside: avoid; }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: .2rem 1.4rem; }
.photos .photo { grid-template-columns: repeat(3, 1fr); max-width: none; }
.photo figure { margin: 0; }
.photo img, .whole { width: 100%; height: auto; display: block; border-radius: 3px; background: var(--panel); }
.whole { max-width: 30rem; }
.missing { border-left: 3px solid var(--line-5); padding: .15rem 0 .15rem .8rem; margin: .5rem 0 .8rem;
  max-width: 46rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: .7rem;
  margin: 1rem 0; }
.card { background: var(--panel); border-radius: 8px; padding: .7rem .9rem; break-inside: avoid; }
.card b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
article { margin: 1.2rem 0 1.8rem; padding-left: .9rem; border-left: 3px solid var(--grid); }
h4 { font-size: 1rem; margin: 1rem 0 .3rem; }
.arms td, .arms th { min-width: 0; }
.arms td:last-child { min-width: 9rem; }
.bars td { min-width: 7rem; padding-right: .5rem; }
.bars td, .bars th { padding-top: .14rem; padding-bottom: .14rem; }
.bar { background: linear-gradient(var(--bar), var(--bar)) no-repeat 0 50% / var(--share) 72%; }
.bar, .scale span { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.verdict { font-weight: 600; }
.abreast { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.confusion, .overlay { margin: 1.2rem 0; break-inside: avoid; flex: 1 1 24rem; min-width: 0; }
.overlay { flex-grow: 0; }
.confusion figcaption, .overlay figcaption { color: var(--ink); font-weight: 600; font-size: .95rem;
  max-width: 46rem; }
.confusion .note { color: var(--soft); font-weight: 400; font-size: .86rem; display: block; }
.heat svg { display: block; width: 100%; min-width: var(--least); max-width: var(--most); height: auto; }
.heat text { font-size: 8px; fill: var(--ink); }
.heat image { image-rendering: pixelated; }
.heat .frame { stroke: var(--grid); stroke-width: .5; }
.scale { display: flex; gap: .3rem; font-weight: 400; font-size: .8rem; margin: .3rem 0; }
.scale span { padding: 0 .5rem; border-radius: 3px; }
pre { background: var(--panel); padding: .8rem; border-radius: 6px; overflow-x: auto; font-size: .8rem;
  line-height: 1.4; white-space: pre-wrap; }
code { font-size: .88em; }
summary { cursor: pointer; padding: .3rem 0; }
@media print {
  :root { color-scheme: light; --paper: #ffffff; --ink: #000000; --soft: #444444; --grid: #bbbbbb; --panel: #f5f5f5;
    --accent: #000000; --line-0: #0072b2; --line-1: #d55e00; --line-2: #00855f; --line-3: #b8578f; --line-4: #2f9fdc;
    --line-5: #c07f00; --line-6: #6a55b8; --line-7: #6f6f76; --bar: #bfdcf2; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  details::details-content { content-visibility: visible; height: auto; display: block; }
  .wide { overflow: visible; }
  td, tbody th, .long td { min-width: 0; }
  .heat svg { min-width: 0; }
  .confusion, .overlay { flex-basis: 45%; }
  table { font-size: 8.5pt; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
  .charts, .photos { grid-template-columns: 1fr 1fr; }
  pre { columns: 3; font-size: 6.5pt; padding: 0; }
  section > p { break-after: avoid; }
  .photo { grid-template-columns: repeat(var(--count), 1fr); }
  @page { margin: 14mm; }
}
"""
