import { z } from 'zod';
import { blobs, controlToNode, controlToPython, envelope, events, startLine } from './messages.ts';
import { frameBytes, protocolRange } from './version.ts';

type Group = Readonly<Record<string, z.ZodType>>;

function toSchema(type: z.ZodType): unknown {
  const { $schema: _, ...schema } = z.toJSONSchema(type, { unrepresentable: 'any' });
  return schema;
}

const group = (types: Group): unknown =>
  Object.fromEntries(Object.entries(types).map(([name, type]) => [name, toSchema(type)]));

/** The whole protocol as one JSON document: what schema/protocol.v1.json holds, byte for byte. */
export function protocolSchemaText(): string {
  const document = {
    $schema: 'https://json-schema.org/draft/2020-12/schema',
    title: 'rcm-bridge wire protocol',
    version: protocolRange[1],
    frameBytes,
    stdin: toSchema(startLine),
    envelope: toSchema(envelope),
    controlToNode: group(controlToNode),
    controlToPython: group(controlToPython),
    events: group(events),
    blobs: group(blobs),
  };
  return `${JSON.stringify(document, null, 1)}\n`;
}
