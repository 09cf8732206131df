import { join } from 'node:path';
import { expect, test } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { protocolSchemaText } from '../../src/protocol/schema.ts';
import { protocolDocument } from './protocol-document.ts';

// Both files are generated: `npx vitest run test/contract/protocol-documents.test.ts -u` writes them anew.

test('the shipped protocol schema is what the messages say', async () => {
  await expect(protocolSchemaText()).toMatchFileSnapshot(join(packageRoot(), 'schema', 'protocol.v1.json'));
});

test('docs/protocol.md is what the messages say, with the bytes of every message', async () => {
  await expect(protocolDocument()).toMatchFileSnapshot(join(packageRoot(), 'docs', 'protocol.md'));
});
