/** Sample grids on disk: a PNG for people and a JSON file that says what is where. */
import { join } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { makeDirectory, writeFileAtomic, writeJsonAtomic } from './files.ts';
import { stepName } from './run-id.ts';

export const samplesName = 'samples';
/** Small images are enlarged by whole factors, so that pixels stay pixels. */
const leastTilePixels = 32;
const gapPixels = 2;

export interface SampleGrid {
  readonly step: number;
  readonly kind: 'preview' | 'evaluation' | 'request';
  readonly title: string;
  readonly rows: readonly string[];
  readonly columns: readonly string[];
}

/** u8 pixels [rows, columns, height, width, channels], channels 1 or 3. */
export interface GridPixels {
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** Where the grids of a step lie, relative to the run directory. */
export const sampleFolder = (step: number): string => join(samplesName, stepName(step));

/** Writes `<kind>-<title>.png` and `.json` into a folder, which is made if needed; returns the name of the PNG. */
export async function writeSampleGrid(folder: string, grid: SampleGrid, pixels: GridPixels): Promise<string> {
  const name = `${grid.kind}-${fileName(grid.title)}`;
  const { png, tile } = await encodeGrid(pixels);
  makeDirectory(folder);
  writeFileAtomic(join(folder, `${name}.png`), png);
  // The JSON comes last: who finds it finds the image too.
  writeJsonAtomic(join(folder, `${name}.json`), { ...grid, image: `${name}.png`, shape: pixels.shape, tile });
  return `${name}.png`;
}

const fileName = (title: string): string =>
  title
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-+|-+$/g, '')
    .slice(0, 60) || 'grid';

export interface GridLayout {
  readonly width: number;
  readonly height: number;
  readonly gap: number;
}

/** All images in one PNG, row by row on a grey ground. `tile` is the size of one image in it. */
export async function encodeGrid(pixels: GridPixels): Promise<{ readonly png: Buffer; readonly tile: GridLayout }> {
  const { PNG } = await import('pngjs');
  const [rows, columns, height, width, channels] = checkedShape(pixels);
  const scale = Math.max(1, Math.ceil(leastTilePixels / Math.max(height, width)));
  const tile = { width: width * scale, height: height * scale, gap: gapPixels };
  const image = new PNG({
    width: columns * (tile.width + gapPixels) + gapPixels,
    height: rows * (tile.height + gapPixels) + gapPixels,
  });
  image.data.fill(0x80);
  for (let at = 3; at < image.data.length; at += 4) image.data[at] = 0xff;
  for (let cell = 0; cell < rows * columns; cell++) {
    const left = gapPixels + (cell % columns) * (tile.width + gapPixels);
    const top = gapPixels + Math.floor(cell / columns) * (tile.height + gapPixels);
    const source = pixels.data.subarray(cell * height * width * channels, (cell + 1) * height * width * channels);
    for (let y = 0; y < tile.height; y++) {
      for (let x = 0; x < tile.width; x++) {
        const from = (Math.floor(y / scale) * width + Math.floor(x / scale)) * channels;
        const to = ((top + y) * image.width + left + x) * 4;
        for (let c = 0; c < 3; c++) image.data[to + c] = source[from + (channels === 1 ? 0 : c)] ?? 0;
      }
    }
  }
  return { png: PNG.sync.write(image), tile };
}

function checkedShape({ shape, data }: GridPixels): [number, number, number, number, number] {
  const [rows = 0, columns = 0, height = 0, width = 0, channels = 0] = shape;
  const wellFormed = shape.length === 5 && rows * columns * height * width > 0 && (channels === 1 || channels === 3);
  if (wellFormed && data.length === rows * columns * height * width * channels) {
    return [rows, columns, height, width, channels];
  }
  throw new RcmBridgeError(
    'E_PROTOCOL',
    `A sample grid has the shape [${shape.join(', ')}] and ${data.length} bytes.`,
    {
      hint: 'It has to be u8 [rows, columns, height, width, 1 or 3].',
    },
  );
}
