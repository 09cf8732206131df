/** The script of the report page: draws every chart that stands as JSON in the page. Plain JavaScript for browsers. */
export const pageScript = `
'use strict';
const colours = ['#2563eb', '#dc2626', '#059669', '#d97706'];
const dark = matchMedia('(prefers-color-scheme: dark)').matches;
const ink = dark ? '#d4d4d8' : '#3f3f46';
const line = dark ? '#3f3f46' : '#e4e4e7';
const axis = () => ({ stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } });
const short = value => value == null ? '' : String(Number(value.toPrecision(4)));
for (const place of document.querySelectorAll('[data-chart]')) {
  const chart = JSON.parse(document.getElementById(place.dataset.chart).textContent);
  const width = () => Math.max(280, place.clientWidth);
  const plot = new uPlot({
    width: width(),
    height: 240,
    cursor: { sync: { key: 'steps' } },
    scales: { x: { time: false }, y: chart.scale === 'log' ? { distr: 3 } : {} },
    axes: [{ ...axis(), label: 'step', labelSize: 20 }, { ...axis(), size: 64, values: (_, ticks) => ticks.map(short) }],
    series: [
      { label: 'step' },
      ...chart.labels.map((label, index) => ({
        label,
        stroke: colours[index % colours.length],
        width: 1.5,
        spanGaps: true,
        points: { show: chart.data[0].length < 30 },
        value: (_, value) => short(value),
      })),
    ],
  }, chart.data, place);
  new ResizeObserver(() => plot.setSize({ width: width(), height: 240 })).observe(place);
}
`;
