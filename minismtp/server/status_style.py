"""The style sheet of the status page, for light and dark screens of any width."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6673; --line: #d9dee5;
  --back: #f6f7f9; --card: #fff; --mark: #0b6bcb; --good: #1a7f37; --warn: #9a5b00;
  --fatal: #c1121f; --good-back: #e6f4ea; --warn-back: #fff3dc; --fatal-back: #fde8e8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a3b1; --line: #2e3742;
  --back: #12161c; --card: #1a2028; --mark: #5aa9f5; --good: #57c27a; --warn: #e3a63b;
  --fatal: #ff7b7b; --good-back: #14291b; --warn-back: #2e2412; --fatal-back: #331a1c } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.25rem; max-width: 76rem; background: var(--back);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.3rem; margin: 0 0 1rem; overflow-wrap: anywhere }
h1 small { color: var(--soft); font-weight: 400; font-size: .9rem }
h2 { font-size: 1rem; margin: 0 0 .6rem }
h3 { font-size: .9rem; font-weight: 600; margin: 1.2rem 0 .3rem }
p { margin: 0 0 .5rem }
p:last-child { margin-bottom: 0 }
table + p { margin-top: .6rem }
code { font-size: .9em }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .9rem 1rem; min-width: 0 }
main { display: grid; gap: 1rem; grid-template-columns: repeat(12, minmax(0, 1fr)) }
main > * { grid-column: span 12 }
.well, .trouble { margin: 0 0 1rem; padding: .6rem 1rem; border-radius: 8px; font-weight: 600 }
.well { color: var(--good); background: var(--good-back) }
.trouble { list-style: none; padding: 0 }
.trouble li { margin: 0 0 .4rem; padding: .5rem 1rem; border-radius: 8px }
.trouble .warn { background: var(--warn-back) }
.trouble .fatal { background: var(--fatal-back) }
.warn { color: var(--warn) }
.fatal, .bad { color: var(--fatal) }
.flow { grid-column: span 6 }
@media (min-width: 760px) { .flow { grid-column: span 3 } .half { grid-column: span 6 }
  .third { grid-column: span 4 } th, td.short { white-space: nowrap } }
.big { font-size: 1.5rem; font-variant-numeric: tabular-nums }
.big small { font-size: .8rem; color: var(--soft) }
.soft { color: var(--soft) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top;
  overflow-wrap: anywhere; border-bottom: 1px solid var(--line) }
th:last-child, td:last-child { padding-right: 0 }
tr:last-child td { border-bottom: 0 }
th { color: var(--soft); font-weight: 500; overflow-wrap: normal }
.n { text-align: right }
td.n { white-space: nowrap }
svg { display: block; width: 100%; height: 3rem }
polyline { fill: none; stroke: var(--mark); stroke-width: 1.5; vector-effect: non-scaling-stroke }
path { fill: none; stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke }
.scale { display: flex; justify-content: space-between; color: var(--soft); font-size: .75rem;
  margin-top: .3rem }
.times { margin-top: 0 }
@media (max-width: 640px) {
  body { padding: .75rem }
  main { gap: .75rem }
  th, td { padding-right: .5rem }
  table.stack thead { display: none }
  table.stack, table.stack tbody { display: block }
  table.stack tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line) }
  h1 small { display: block }
  table.stack td { display: flex; gap: .75rem; border: 0; padding: .1rem 0; text-align: left;
    white-space: normal }
  table.stack td::before { content: attr(data-name); color: var(--soft); flex: 0 0 6.5rem }
  table.stack td:empty { display: none }
  table.brief thead { display: none }
  table.brief, table.brief tbody { display: block }
  table.brief tr { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: .4rem 0;
    border-bottom: 1px solid var(--line) }
  table.brief td { display: block; border: 0; padding: 0 }
  table.brief td:first-child { flex: 0 0 100%; font-weight: 600 }
  table.brief td + td::before { content: attr(data-name) " "; color: var(--soft) }
}
"""
