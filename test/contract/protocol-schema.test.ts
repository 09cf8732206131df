import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { fixtures, testPython } from '../python.ts';

type Schema = Readonly<Record<string, unknown>>;

/** What a schema means, in one form for zod's and msgspec's way of writing it. */
function meaning(schema: Schema, definitions: Schema): unknown {
  if (typeof schema.$ref === 'string') {
    const name = schema.$ref.split('/').at(-1) ?? '';
    return meaning(definitions[name] as Schema, definitions);
  }
  const options = (schema.anyOf ?? schema.oneOf) as readonly Schema[] | undefined;
  if (options)
    return {
      anyOf: options
        .map(option => meaning(option, definitions))
        .map(sortable)
        .sort(),
    };
  if (Array.isArray(schema.type))
    return meaning({ anyOf: schema.type.map(type => ({ ...schema, type })) }, definitions);
  if (schema.enum) return { enum: [...(schema.enum as unknown[])].sort() };
  if ('const' in schema) return { enum: [schema.const] };
  if (schema.type === 'object' && schema.properties) return objectMeaning(schema, definitions);
  if (schema.type === 'object') return { record: valueMeaning(schema.additionalProperties, definitions) };
  if (schema.type === 'array') return arrayMeaning(schema, definitions);
  const { type, minimum, maximum } = schema;
  return { type, ...(minimum === undefined ? {} : { minimum }), ...(maximum === undefined ? {} : { maximum }) };
}

const sortable = (value: unknown): string => JSON.stringify(value);

function valueMeaning(schema: unknown, definitions: Schema): unknown {
  const open = schema === undefined || schema === true || Object.keys(schema as object).length === 0;
  return open ? 'anything' : meaning(schema as Schema, definitions);
}

function objectMeaning(schema: Schema, definitions: Schema): unknown {
  const properties = schema.properties as Readonly<Record<string, Schema>>;
  // msgspec calls a field with a default optional; those the sidecar always writes are marked by the default.
  const written = Object.keys(properties).filter(name => 'default' in (properties[name] as Schema));
  return {
    fields: Object.fromEntries(
      Object.entries(properties)
        .sort(([a], [b]) => a.localeCompare(b))
        .map(([name, value]) => [name, meaning(withoutDefault(value), definitions)]),
    ),
    required: [...new Set([...((schema.required ?? []) as string[]), ...written])].sort(),
    closed: schema.additionalProperties === false,
  };
}

const withoutDefault = ({ default: _, ...schema }: Schema): Schema => schema;

function arrayMeaning(schema: Schema, definitions: Schema): unknown {
  const items = schema.prefixItems as readonly Schema[] | undefined;
  if (items) return { tuple: items.map(item => meaning(item, definitions)) };
  return { array: valueMeaning(schema.items, definitions) };
}

interface Document {
  readonly groups: Readonly<Record<string, Readonly<Record<string, Schema>>>>;
  readonly definitions: Schema;
}

function pythonSchemas(): Document {
  const { status, stdout, stderr } = spawnSync(testPython(), ['-P', join(fixtures, 'protocol_schemas.py')], {
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as Document;
}

const shipped = JSON.parse(readFileSync(join(packageRoot(), 'schema/protocol.v1.json'), 'utf8')) as Record<
  string,
  Readonly<Record<string, Schema>>
>;
const python = pythonSchemas();

test('both sides know the same message types', () => {
  for (const group of ['controlToNode', 'controlToPython', 'events', 'blobs'])
    expect(Object.keys(python.groups[group]!).sort()).toEqual(Object.keys(shipped[group]!).sort());
});

const cases = ['controlToNode', 'controlToPython', 'events', 'blobs'].flatMap(group =>
  Object.keys(shipped[group]!).map(type => [group, type] as const),
);

test.each(cases)('%s %s means the same to zod and to msgspec', (group, type) => {
  expect(meaning(python.groups[group]![type]!, python.definitions)).toEqual(meaning(shipped[group]![type]!, {}));
});

test('the start line means the same to both', () => {
  expect(meaning(python.groups.stdin!.line!, python.definitions)).toEqual(
    meaning(shipped.stdin as unknown as Schema, {}),
  );
});

test('the comparison notices a field that differs', () => {
  const hello = shipped.controlToNode!.hello!;
  const properties = { ...(hello.properties as Schema), pid: { type: 'string' } };
  expect(meaning({ ...hello, properties }, {})).not.toEqual(meaning(hello, {}));
  expect(meaning({ ...hello, required: ['pid'] }, {})).not.toEqual(meaning(hello, {}));
});
