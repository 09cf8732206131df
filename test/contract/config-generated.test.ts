import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { configJsonSchema, membersOf, type SchemaNode, schemaAt } from '../../src/config/json-schema.ts';
import { loadConfig } from '../../src/config/load.ts';
import { notYetPaths } from '../../src/config/not-yet.ts';
import { packageRoot } from '../../src/package-root.ts';

const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;
const loaded = (source: string) => loadConfig(source, { cwd: packageRoot(), env: {} });

describe('generated files (npm run generate)', () => {
  it('schema/config.v1.json is that of the blocks', async () => {
    await expect(json(configJsonSchema())).toMatchFileSnapshot(join(packageRoot(), 'schema/config.v1.json'));
  });

  it('test/py/fixtures/digits-rcm.json is the resolved default', async () => {
    const { config } = await loaded('digits-rcm');
    await expect(json(config)).toMatchFileSnapshot(join(packageRoot(), 'test/py/fixtures/digits-rcm.json'));
  });
});

describe('the schema', () => {
  it('describes every key and says whether it may change on resume', () => {
    const described = everyKey(configJsonSchema());
    const missing = described.filter(
      ({ path, node }) => !node.description || (path !== 'extends' && !('x-mayChangeOnResume' in node)),
    );
    expect(missing).toEqual([]);
    expect(described.length).toBeGreaterThan(100);
  });

  it('knows every path of the not-yet table', () => {
    const schema = configJsonSchema();
    expect(notYetPaths.filter(path => schemaAt(schema, path.split('.'), {}) === undefined)).toEqual([]);
  });
});

function everyKey(root: SchemaNode, prefix = ''): readonly { readonly path: string; readonly node: SchemaNode }[] {
  return membersOf(root).flatMap(member => [
    ...Object.entries(member.properties ?? {}).flatMap(([key, node]) => [
      { path: `${prefix}${key}`, node },
      ...everyKey(node, `${prefix}${key}.`),
    ]),
    ...(member.items ? everyKey(member.items, prefix) : []),
  ]);
}
