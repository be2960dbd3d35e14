"""The report's style sheet; it is within the page, for a report is one file."""

STYLE = """
:root{--ink:#1c2330;--soft:#5b6678;--line:#dde2ea;--paper:#fff;--back:#f5f7fa;--accent:#1f6feb;--good:#1a7f4b;
--bad:#b3261e;--warn:#8a5a00}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf2;--soft:#9aa5b8;--line:#313a49;--paper:#1a202b;--back:#12161e;
--accent:#6ea8ff;--good:#57c98c;--bad:#ff8a80;--warn:#e6b450}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.5rem;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 10px;display:flex;flex-wrap:wrap;gap:8px;align-items:center}
h3{font-size:.95rem;margin:18px 0 6px}
p{margin:4px 0 8px}
a{color:var(--accent)}
.soft,small{color:var(--soft)}
section{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:16px;margin-top:16px}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:8px 28px}
.columns>div{min-width:0}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{text-align:left;vertical-align:top;padding:5px 12px 5px 0;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600;white-space:nowrap}
.figure{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 14px;margin:0;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;min-width:0;overflow-wrap:anywhere}
ul{margin:4px 0;padding-left:18px;font-size:.9rem}
code{font:.8rem/1.4 ui-monospace,monospace;overflow-wrap:anywhere}
td code{overflow-wrap:normal}
td .reason{min-width:200px;display:inline-block}
td a{white-space:nowrap}
details{margin-top:12px}summary{cursor:pointer;color:var(--accent)}
.badge{font-size:.75rem;font-weight:600;border:1px solid currentColor;border-radius:99px;padding:1px 9px;
white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
.notice{border-color:var(--warn)}
svg{display:block;width:100%;max-width:600px;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
svg text.limit{fill:var(--warn)}
line.grid{stroke:var(--line)}line.limit{stroke:var(--warn);stroke-dasharray:4 3}
.front{stroke:var(--accent);fill:none;stroke-width:1.5}circle.front{fill:var(--accent);stroke:none}
.mark{stroke-width:2}.mark.accepted{fill:var(--good);stroke:var(--paper)}
.mark.planned{fill:none;stroke:var(--ink)}.mark.rejected{stroke:var(--bad);fill:none}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.85rem}
.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
@media (max-width:520px){dl{grid-template-columns:1fr}dd{margin-bottom:6px}}
"""
