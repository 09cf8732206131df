/**
 * report/index.html: one file that holds everything it shows. Its content security policy forbids every request,
 * so that it can be kept, mailed or opened anywhere.
 */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { makeDirectory, writeFileAtomic } from '../runs/files.ts';
import type { RunRecord } from '../runs/record.ts';
import { type Chart, chartsOf } from './charts.ts';
import { escapeText, html, type Markup, raw } from './markup.ts';
import { pageScript } from './page-script.ts';
import { pageStyle } from './page-style.ts';
import { profileTable } from './profile.ts';
import { reportPath } from './report-path.ts';
import { type ReportGrid, type RunData, readRunData } from './run-data.ts';
import { evaluationTable, gatesTable } from './tables.ts';

/**
 * Writes the report of the runs, below each other, into the first one's directory; returns the absolute path. `record`
 * stands in for run.json, for the owner of a run that is about to end. @throws E_DISK_FULL, E_RUN_NOT_FOUND, E_USAGE
 */
export async function writeReport(runDirs: readonly string[], record?: RunRecord): Promise<string> {
  const [first] = runDirs;
  if (first === undefined)
    throw new RcmBridgeError('E_USAGE', 'A report needs a run.', { hint: 'Name one, or `last`.' });
  const page = await renderPage(runDirs.map(runDir => dataOf(runDir, runDir === first ? record : undefined)));
  const path = join(first, reportPath);
  makeDirectory(dirname(path));
  writeFileAtomic(path, page);
  return path;
}

/** The report of one run, or of several below each other, as one HTML document. @throws E_RUN_NOT_FOUND */
export async function renderReport(runDirs: readonly string[]): Promise<string> {
  return renderPage(runDirs.map(runDir => dataOf(runDir)));
}

function dataOf(runDir: string, record?: RunRecord): RunData {
  const data = readRunData(runDir, record);
  if (data) return data;
  throw new RcmBridgeError('E_RUN_NOT_FOUND', `There is no run in ${runDir}.`, { hint: 'See `rcm-bridge runs list`.' });
}

async function renderPage(runs: readonly RunData[]): Promise<string> {
  const { stringify } = await import('yaml');
  const sections = runs.map((run, index) => runSection(run, index, value => stringify(value, { lineWidth: 0 })));
  return page(runs.map(run => run.record.id).join(', '), sections);
}

function page(title: string, sections: readonly Markup[]): string {
  const charts = chartLibrary();
  const scripts = [charts.script, pageScript];
  const hashes = scripts.map(script => `'sha256-${createHash('sha256').update(script).digest('base64')}'`);
  const policy = `default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src ${hashes.join(' ')}; base-uri 'none'; form-action 'none'`;
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>${title} - rcm-bridge</title>
<style>${raw(charts.style + pageStyle)}</style>
</head>
<body>
${sections}
${scripts.map(script => raw(`<script>${script}</script>`))}
</body>
</html>
`.text;
}

/** uPlot as it lies in node_modules: shipped inside every report, nothing is loaded from elsewhere. */
function chartLibrary(): { readonly script: string; readonly style: string } {
  const folder = dirname(createRequire(import.meta.url).resolve('uplot/package.json'));
  const read = (name: string): string => fs.readFileSync(join(folder, 'dist', name), 'utf8');
  return { script: read('uPlot.iife.min.js').replaceAll('</script', '<\\/script'), style: read('uPlot.min.css') };
}

function runSection(run: RunData, index: number, toYaml: (value: unknown) => string): Markup {
  const { record, scorecard } = run;
  const charts = chartsOf(run.series);
  return html`<h1>${record.id}</h1>
${summary(run)}
${scorecard && scorecard.gates.length > 0 ? html`<h2>Gates</h2>${gatesTable(scorecard.gates)}` : ''}
${scorecard ? html`<h2>Quality, diversity, speed</h2>${evaluationTable(scorecard)}` : ''}
${
  run.grids.length > 0
    ? html`<h2>Samples</h2>
<p class="note">Within a grid every row starts from the same noise.</p>
<div class="grids">${run.grids.map(gridFigure)}</div>`
    : ''
}
${
  charts.length > 0
    ? html`<h2>Training</h2>
<div class="charts">${charts.map((chart, at) => chartFigure(chart, `chart-${index}-${at}`))}</div>`
    : ''
}
${run.profiles.length > 0 ? html`<h2>Time of a step</h2>${profileTable(run.profiles)}` : ''}
<h2>Config and versions</h2>
<details><summary>Config</summary><pre>${toYaml(run.config)}</pre></details>
<details><summary>Versions and machine</summary><pre>${toYaml(run.environment)}</pre></details>
`;
}

function summary({ record, config }: RunData): Markup {
  const { step, steps, studentUpdates, criticUpdates } = record.progress;
  const { started, ended } = record.times;
  const lasted = started && ended ? `, ${Math.round((Date.parse(ended) - Date.parse(started)) / 1000)} s` : '';
  const attempts = record.attempt > 1 ? `, attempt ${record.attempt}` : '';
  const kind = record.job === 'pretrain' ? 'pretraining' : `method ${String(config.method ?? 'unknown')}`;
  return html`<p>${record.state}: ${kind}, step ${step} of ${steps} (${studentUpdates} student updates, ${criticUpdates} critic updates)${lasted}${attempts}${record.smoke ? ', smoke run' : ''}.
<small>Started ${started ?? 'never'}.</small></p>
${record.error ? html`<p class="unmet">${record.error.code}: ${record.error.message}</p>` : ''}`;
}

function chartFigure(chart: Chart, id: string): Markup {
  // In a data block only "<" could end the element or start a comment.
  const data = JSON.stringify(chart).replaceAll('<', '\\u003c');
  return html`<section><h3>${chart.title}</h3><p class="note">${chart.note}</p>
<div data-chart="${id}"></div>${raw(`<script type="application/json" id="${escapeText(id)}">${data}</script>`)}</section>`;
}

function gridFigure({ step, kind, title, rows, columns, tile, image }: ReportGrid): Markup {
  const width = tile.width + tile.gap;
  const height = tile.height + tile.gap;
  return html`<figure><figcaption>${title} <small>${kind}, step ${step}</small></figcaption>
<div class="grid"><span></span><div class="columns">${columns.map(name => html`<span style="width:${width}px" title="${name}">${name}</span>`)}</div>
<div class="rows">${rows.map(name => html`<span style="height:${height}px">${name}</span>`)}</div>
<img src="${image}" alt="${title}, rows: ${rows.join(', ')}"></div></figure>`;
}
