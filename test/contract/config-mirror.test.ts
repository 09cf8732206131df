import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { configSchema } from '../../src/config/blocks/index.ts';
import { resolvedJsonSchema } from '../../src/config/json-schema.ts';
import { loadConfig } from '../../src/config/load.ts';
import { packageRoot } from '../../src/package-root.ts';
import { resolvePython } from '../../src/python/find.ts';

/** A JSON Schema node of either generator. */
interface Node {
  readonly $ref?: string;
  readonly $defs?: Readonly<Record<string, Node>>;
  readonly type?: string | readonly string[];
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly anyOf?: readonly Node[];
  readonly oneOf?: readonly Node[];
  readonly properties?: Readonly<Record<string, Node>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: unknown;
  readonly items?: Node | false;
  readonly prefixItems?: readonly Node[];
  readonly [keyword: string]: unknown;
}

type Document = Record<string, unknown>;
type Verdict = string | null;

let mirror: { readonly schema: Node; readonly verdicts: readonly Verdict[] };
let cases: readonly { readonly what: string; readonly document: Document }[] = [];

beforeAll(async () => {
  const loaded = await Promise.all(
    ['digits-rcm', 'wan2.1-t2v-1.3b-480p-rcm'].map(preset => loadConfig(preset, { cwd: packageRoot(), env: {} })),
  );
  cases = loaded.flatMap(({ config }) => [
    { what: `preset ${config.name}`, document: config as unknown as Document },
    ...mutations(config as unknown as Document),
  ]);
  // TypeScript fills what is missing before Python sees the document.
  mirror = await askPython(cases.map(({ document }) => configSchema.safeParse(document).data ?? document));
});

describe('zod and msgspec', () => {
  it('describe the same documents', () => {
    const zod = resolvedJsonSchema() as Node;
    expect(meaning(mirror.schema, mirror.schema)).toEqual(meaning(zod, zod));
  });

  it('judge good and bad documents alike', () => {
    const differences = cases.flatMap(({ what, document }, index) => {
      const parsed = configSchema.safeParse(document);
      const python = mirror.verdicts[index] ?? null;
      return parsed.success === (python === null) ? [] : [`${what}: zod ${parsed.success}, msgspec ${python}`];
    });
    expect(differences).toEqual([]);
    expect(cases.length).toBeGreaterThan(1500);
    expect(mirror.verdicts.filter(verdict => verdict === null).length).toBeGreaterThan(100);
    expect(mirror.verdicts.filter(verdict => verdict !== null).length).toBeGreaterThan(1000);
  });
});

/** What a schema means, without the ways to write it down: references, enums, bounds that every number has. */
function meaning(node: Node, root: Node): unknown {
  if (node.$ref) return meaning(root.$defs?.[node.$ref.split('/').at(-1) ?? ''] as Node, root);
  const types = Array.isArray(node.type) ? node.type.map((type: string): Node => ({ ...node, type })) : undefined;
  const members = node.anyOf ?? node.oneOf ?? types ?? node.enum?.map((value): Node => ({ const: value }));
  if (members) return union(members.map(member => meaning(member, root)));
  if ('const' in node) return node.const === null ? 'null' : { const: node.const };
  if (node.type === 'null' || node.type === 'boolean') return node.type;
  if (node.type === 'object') return objectMeaning(node, root);
  if (node.prefixItems) return { tuple: node.prefixItems.map(item => meaning(item, root)) };
  if (node.type === 'array')
    return { list: meaning(node.items as Node, root), ...pick(node, ['minItems', 'maxItems']) };
  const bounds = pick(node, ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'minLength', 'pattern']);
  return { type: node.type, ...bounds };
}

const pick = (node: Node, names: readonly string[]): object =>
  Object.fromEntries(
    names
      .filter(name => node[name] !== undefined && Math.abs(Number(node[name])) !== Number.MAX_SAFE_INTEGER)
      .map(name => [name, node[name]]),
  );

function objectMeaning(node: Node, root: Node): unknown {
  expect(node.additionalProperties).toBe(false);
  const keys = Object.keys(node.properties ?? {}).sort();
  return Object.fromEntries(
    keys.map(key => [
      `${key}${node.required?.includes(key) ? '' : '?'}`,
      meaning(node.properties?.[key] as Node, root),
    ]),
  );
}

function union(members: readonly unknown[]): unknown {
  const flat = members.flatMap(member =>
    typeof member === 'object' && member !== null && 'anyOf' in member ? (member.anyOf as unknown[]) : [member],
  );
  const sorted = flat.toSorted((left, right) => JSON.stringify(left).localeCompare(JSON.stringify(right)));
  return sorted.length === 1 ? sorted[0] : { anyOf: sorted };
}

const odd: readonly unknown[] = [
  'text',
  '',
  -1,
  0,
  0.5,
  1,
  1.5,
  2,
  5000,
  true,
  null,
  [],
  ['x'],
  [1, 2, 3],
  {},
  { kind: 'power' },
];

/** The document with each of its values replaced by odd ones, and with an unknown key in each block. */
function mutations(document: Document): { what: string; document: Document }[] {
  const made: { what: string; document: Document }[] = [];
  const visit = (value: unknown, path: readonly string[]): void => {
    for (const other of path.length > 0 ? odd : [])
      made.push({ what: `${path.join('.')} = ${JSON.stringify(other)}`, document: replaced(document, path, other) });
    if (typeof value !== 'object' || value === null) return;
    if (!Array.isArray(value))
      made.push({ what: `${path.join('.')} has more`, document: replaced(document, [...path, 'surplus'], 1) });
    for (const [key, inner] of Object.entries(value)) visit(inner, [...path, key]);
  };
  visit(document, []);
  return made;
}

function replaced(document: unknown, path: readonly string[], value: unknown): Document {
  const [key, ...rest] = path;
  if (key === undefined) return value as Document;
  const copy = (Array.isArray(document) ? [...document] : { ...(document as Document) }) as Document;
  copy[key] = replaced(copy[key], rest, value);
  return copy;
}

async function askPython(documents: readonly Document[]): Promise<typeof mirror> {
  const python =
    process.env.RCM_TEST_PYTHON ?? (await resolvePython({ env: process.env, cwd: packageRoot() })).executable;
  const child = spawnSync(python, [join(import.meta.dirname, 'config_mirror.py')], {
    input: JSON.stringify(documents),
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    env: { ...process.env, PYTHONPATH: join(packageRoot(), 'py'), PYTHONDONTWRITEBYTECODE: '1' },
  });
  if (child.status !== 0) throw new Error(child.stderr);
  return JSON.parse(child.stdout) as typeof mirror;
}
