"""The page's style sheet: system fonts, one column, light and dark."""

CSS = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5f6670; --line: #e1e5ea; --paper: #fdfdfc; --card: #f4f5f6;
  --accent: #0072b2; --good: #0068a3; --bad: #b84a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a3abb5; --line: #353b43; --paper: #16191d;
  --card: #1f2429; --accent: #56b4e9; --good: #6cc0ee; --bad: #f0935a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 24px 72px; }
.privacy { max-width: none; margin: 0 0 34px; padding: 9px 14px; background: var(--card); border-left: 3px solid
  var(--accent);
  color: var(--soft); font-size: 14px; }
h1 { margin: 0 0 14px; font-size: 28px; line-height: 1.25; font-weight: 650; letter-spacing: -0.012em; }
h2 { margin: 44px 0 4px; font-size: 20px; font-weight: 650; letter-spacing: -0.005em; }
p { margin: 0 0 12px; max-width: 78ch; }
.lead { font-size: 17px; }
.note, .facts { color: var(--soft); font-size: 14px; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 20px 0 0; padding: 0; list-style: none; }
.facts b { color: var(--ink); font-weight: 600; }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; font-size: 13px; vertical-align: bottom; }
th, td { padding: 7px 12px 7px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 150px; }
th:last-child, td:last-child { padding-right: 0; }
td small { display: block; color: var(--soft); font-size: 12.5px; line-height: 1.35; }
tr.main td { background: var(--card); }
tr.main td:nth-child(-n+2) { font-weight: 600; }
tr.main td small { font-weight: 400; }
tr.main td:first-child { box-shadow: -8px 0 0 var(--card); }
tr.main td:last-child { box-shadow: 8px 0 0 var(--card); }
.good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; padding: 0 8px; margin: 12px -8px 0; }
.users { max-height: 460px; overflow: auto; border: 1px solid var(--line); border-radius: 6px; margin-top: 12px; }
.users th { position: sticky; top: 0; background: var(--paper); box-shadow: 0 1px 0 var(--line); }
.users th:first-child, .users td:first-child { padding-left: 14px; max-width: 240px; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.users th:last-child, .users td:last-child { padding-right: 14px; }
.users tr:last-child td { border-bottom: 0; }
figure { margin: 10px 0 0; min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 36px; }
@media (max-width: 760px) { .pair { grid-template-columns: 1fr; } h1 { font-size: 24px; } }
details { margin-top: 52px; border-top: 1px solid var(--line); padding-top: 16px; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow: auto; padding: 14px 16px; background: var(--card); border-radius: 6px; font: 13px/1.5 ui-monospace,
  SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
.js-plotly-plot [class$="tick"] text, .js-plotly-plot .legendtext,
.js-plotly-plot .xtitle, .js-plotly-plot .ytitle, .js-plotly-plot .x2title, .js-plotly-plot .y2title,
.js-plotly-plot .annotation-text, .js-plotly-plot .bartext {
  fill: var(--soft) !important; }
"""
