import { join } from 'node:path';
import { expect, test } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { protocolSchemaText } from '../../src/protocol/schema.ts';

// Both files are generated: `npx vitest run test/contract/protocol-documents.test.ts -u` writes them anew.

test('the shipped protocol schema is what the messages say', async () => {
  await expect(protocolSchemaText()).toMatchFileSnapshot(join(packageRoot(), 'schema', 'protocol.v1.json'));
});
