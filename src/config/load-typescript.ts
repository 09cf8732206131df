import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Service } from 'ts-node';
import { isRcmBridgeError, RcmBridgeError } from '../errors/index.ts';
import { packageRoot } from '../package-root.ts';

type TypeScript = typeof import('typescript');

interface LoadOptions {
  /** How errors name the file. */
  readonly where: string;
  /** Check types first; otherwise types are only removed. */
  readonly typeCheck: boolean;
}

/**
 * The default export of a config written in TypeScript. The file and its relative imports are compiled with ts-node's
 * `create().compile()` into a private folder beside the config, so that its packages resolve, then imported. No hook
 * stays behind in the process. Errors: E_CONFIG_TYPES, E_CONFIG_SYNTAX, E_TYPESCRIPT_API.
 */
export async function loadTypeScript(file: string, options: LoadOptions): Promise<unknown> {
  const { service, ts } = await createCompiler(file, options.typeCheck);
  const folder = await temporaryFolder(dirname(file));
  try {
    const entry = await emit(file, { service, ts, folder, done: new Map(), options });
    const module = (await import(pathToFileURL(entry).href)) as { default?: unknown };
    return module.default;
  } catch (error) {
    throw isRcmBridgeError(error) ? error : loadError(error, options.where);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Beside the config, where its bare imports resolve; elsewhere if that folder cannot be written. */
const temporaryFolder = (beside: string): Promise<string> =>
  mkdtemp(join(beside, '.rcm-config-')).catch(() => mkdtemp(join(tmpdir(), 'rcm-config-')));

const loadError = (error: unknown, where: string): RcmBridgeError =>
  new RcmBridgeError(
    'E_CONFIG_SYNTAX',
    `${where}: it does not load: ${error instanceof Error ? error.message : String(error)}.`,
    {
      hint: 'A config exports its object as default.',
      cause: error,
    },
  );

async function createCompiler(file: string, typeCheck: boolean): Promise<{ service: Service; ts: TypeScript }> {
  const require = createRequire(import.meta.url);
  const compiler = require.resolve('typescript');
  const ts = require(compiler) as TypeScript;
  // TypeScript 7 has no `sys`; ts-node fails inside it with an error nobody can read.
  if (typeof ts.sys !== 'object' || typeof ts.preProcessFile !== 'function') {
    throw new RcmBridgeError(
      'E_TYPESCRIPT_API',
      `TypeScript ${ts.version} does not have the interface that ts-node needs.`,
      {
        hint: 'Install typescript 6 beside rcm-bridge, or write the config in YAML.',
      },
    );
  }
  const { create } = await import('ts-node');
  const types = join(
    packageRoot(),
    existsSync(join(packageRoot(), 'dist', 'config', 'define.d.ts'))
      ? 'dist/config/define.d.ts'
      : 'src/config/define.ts',
  );
  const service = create({
    cwd: dirname(file),
    compiler,
    skipProject: true,
    transpileOnly: !typeCheck,
    compilerOptions: {
      module: 'esnext',
      moduleResolution: 'bundler',
      target: 'es2022',
      strict: true,
      skipLibCheck: true,
      allowImportingTsExtensions: true,
      noEmit: false,
      rewriteRelativeImportExtensions: false,
      resolveJsonModule: true,
      ...nodeTypes(),
      paths: { 'rcm-bridge/config': [types] },
    },
  });
  return { service, ts };
}

/** Node's own types: ts-node asks for them, so they are installed wherever it is. */
function nodeTypes(): { readonly types: readonly string[]; readonly typeRoots?: readonly string[] } {
  const require = createRequire(createRequire(import.meta.url).resolve('ts-node'));
  try {
    return { types: ['node'], typeRoots: [dirname(dirname(require.resolve('@types/node/package.json')))] };
  } catch {
    return { types: [] };
  }
}

interface Emission {
  readonly service: Service;
  readonly ts: TypeScript;
  readonly folder: string;
  /** Source file to emitted file; filled before its imports, so that cycles end. */
  readonly done: Map<string, string>;
  readonly options: LoadOptions;
}

async function emit(file: string, emission: Emission): Promise<string> {
  const known = emission.done.get(file);
  if (known !== undefined) return known;
  const target = join(emission.folder, `${emission.done.size}.mjs`);
  emission.done.set(file, target);
  const source = await readFile(file, 'utf8');
  const compiled = file.endsWith('.json') ? `export default ${source};` : compile(source, file, emission);
  const own = pathToFileURL(file).href;
  const located = compiled
    .replace(/\bimport\.meta\.url\b/g, JSON.stringify(own))
    .replace(/\bimport\.meta\.dirname\b/g, JSON.stringify(dirname(file)))
    .replace(/\bimport\.meta\.filename\b/g, JSON.stringify(file));
  await writeFile(target, file.endsWith('.json') ? compiled : await withRewrittenImports(located, file, emission));
  return target;
}

function compile(source: string, file: string, { service, options }: Emission): string {
  try {
    return service.compile(source, file);
  } catch (error) {
    const text = (error as { diagnosticText?: string }).diagnosticText;
    if (text === undefined) throw error;
    const message = firstDiagnostic(text, file, options.where);
    throw new RcmBridgeError(options.typeCheck ? 'E_CONFIG_TYPES' : 'E_CONFIG_SYNTAX', message, {
      hint: options.typeCheck ? 'Mend this line; the types are those of RcmConfigInput.' : 'Mend this line.',
      details: { diagnostics: text },
    });
  }
}

/** `rcm.config.ts:3:5: Type 'string' is not assignable to type 'number'. (TS2322)` */
function firstDiagnostic(text: string, file: string, where: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the compiler colours its text
  const plain = text.replace(/\u001b\[\d+m/g, '');
  const found = /^(.*?)[(:](\d+)[,:](\d+)\)?(?::| -) error (TS\d+): (.+)$/m.exec(plain);
  if (!found) return `${where}: ${plain.split('\n')[0]}`;
  const [, name = '', line, column, code, reason] = found;
  const shown = file.endsWith(name.replace(/^.*[\\/]/, '')) ? where : name;
  return `${shown}:${line}:${column}: ${reason} (${code})`;
}

async function withRewrittenImports(code: string, file: string, emission: Emission): Promise<string> {
  const imports = emission.ts.preProcessFile(code, true, true).importedFiles;
  let rewritten = code;
  // From the end, so that earlier positions stay right.
  for (const { fileName, pos } of imports.toReversed()) {
    const target = await importTarget(fileName, file, emission);
    if (target === undefined) continue;
    const quote = /['"`]/.test(code[pos] ?? '') ? pos : pos - 1;
    const after = quote + fileName.length + 2;
    rewritten = rewritten.slice(0, quote) + JSON.stringify(target) + rewritten.slice(after);
  }
  return rewritten;
}

/** What an import has to say instead, or undefined to leave it. */
async function importTarget(name: string, file: string, emission: Emission): Promise<string | undefined> {
  if (name === 'rcm-bridge/config') return definition(emission.folder);
  if (!/^\.\.?(\/|$)/.test(name)) return undefined;
  const found = locateImport(resolve(dirname(file), name));
  if (found === undefined) return pathToFileURL(resolve(dirname(file), name)).href;
  const isCompiled = /\.([mc]?ts|json)$/.test(found);
  return pathToFileURL(isCompiled ? await emit(found, emission) : found).href;
}

/** TypeScript's own resolution of a relative import, as far as configs need it. */
function locateImport(path: string): string | undefined {
  const typed = path.replace(/\.([mc]?)js$/, '.$1ts');
  const candidates = [
    typed,
    path,
    `${path}.ts`,
    `${path}.mts`,
    `${path}.js`,
    `${path}.mjs`,
    join(path, 'index.ts'),
    join(path, 'index.js'),
  ];
  return candidates.find(candidate => /\.[a-z]+$/.test(candidate) && existsSync(candidate));
}

/** `defineConfig` also where the package is not installed beside the config, as under npx. */
async function definition(folder: string): Promise<string> {
  const target = join(folder, 'define.mjs');
  await writeFile(target, 'export const defineConfig = config => config;\n');
  return pathToFileURL(target).href;
}
