/** The style of the report page; the chart library's own style is put before it. */
export const pageStyle = `
:root { color-scheme: light dark; --ink: #18181b; --soft: #52525b; --line: #e4e4e7; --ground: #ffffff; --good: #047857; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #f4f4f5; --soft: #a1a1aa; --line: #3f3f46; --ground: #18181b; --good: #34d399; --bad: #f87171; } }
body { margin: 0 auto; padding: 24px 24px 64px; max-width: 1180px; font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 8px; } h3 { font-size: 15px; margin: 0 0 2px; }
p { margin: 4px 0 12px; } small, .note { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 28px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th, td { padding: 5px 12px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td small, th small { display: block; white-space: nowrap; font-weight: normal; }
.bar { display: block; height: 4px; border-radius: 2px; background: var(--good); }
.met { color: var(--good); } .unmet { color: var(--bad); }
.grids { display: flex; flex-wrap: wrap; gap: 28px; } figure { margin: 0; } figcaption { margin-bottom: 6px; }
.grid { display: grid; grid-template-columns: auto auto; font-size: 12px; width: max-content; max-width: 100%; overflow-x: auto; }
.grid .columns { grid-column: 2; display: flex; } .grid .columns span { text-align: center; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.grid .rows { padding-right: 8px; text-align: right; } .grid .rows span { display: flex; align-items: center; justify-content: flex-end; white-space: nowrap; }
.grid img { display: block; image-rendering: pixelated; max-width: none; }
pre { overflow-x: auto; padding: 12px; border: 1px solid var(--line); border-radius: 6px; font-size: 13px; } summary { cursor: pointer; margin: 8px 0; }
`;
