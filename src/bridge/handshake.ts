import { createHash, timingSafeEqual } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { packageRoot } from '../package-root.ts';
import { agreeOnProtocol, type Hello, protocolRange } from '../protocol/index.ts';

/** sha256 (hex) of the protocol schema this package ships; the sidecar computes the same from its copy. */
export async function protocolSchemaHash(): Promise<string> {
  const bytes = await readFile(join(packageRoot(), 'schema', 'protocol.v1.json'));
  return createHash('sha256').update(bytes).digest('hex');
}

/**
 * Checks a hello and returns the protocol agreed on.
 *
 * @throws RcmBridgeError E_PROTOCOL for a wrong token, another protocol or another schema.
 */
export function acceptHello(hello: Hello, token: string, schemaHash: string): number {
  if (!sameText(hello.token, token)) throw new RcmBridgeError('E_PROTOCOL', 'The sidecar showed a wrong token.');
  const agreed = agreeOnProtocol(hello.protocol);
  if (agreed === undefined) {
    const [ours, theirs] = [protocolRange.join('-'), hello.protocol.join('-')];
    throw new RcmBridgeError('E_PROTOCOL', `The sidecar speaks protocol ${theirs}, this package speaks ${ours}.`, {
      hint: 'Both sides ship in one package: reinstall it.',
    });
  }
  if (hello.schemaHash !== schemaHash)
    throw new RcmBridgeError('E_PROTOCOL', 'The sidecar has another protocol schema than this package.', {
      hint: 'Both sides ship in one package: reinstall it.',
      details: { ours: schemaHash, theirs: hello.schemaHash },
    });
  return agreed;
}

/** Compares in constant time. */
function sameText(left: string, right: string): boolean {
  const [a, b] = [left, right].map(text => createHash('sha256').update(text).digest()) as [Buffer, Buffer];
  return timingSafeEqual(a, b);
}
