import { z } from 'zod';
import {
  blobs,
  controlToNode,
  controlToPython,
  envelope,
  events,
  frameBytes,
  startLine,
} from '../../src/protocol/index.ts';
import { exampleFrames, examples, type Group } from './golden.ts';

const groups: ReadonlyArray<readonly [Group, string, string, Readonly<Record<string, z.ZodType>>]> = [
  [
    'controlToNode',
    'Control: Python to Node',
    'ROUTER/DEALER. `ok` and `error` answer the request named in `re`.',
    controlToNode,
  ],
  [
    'controlToPython',
    'Control: Node to Python',
    'All but `welcome` carry an `id` and are answered by `ok` or `error`.',
    controlToPython,
  ],
  ['events', 'Events', 'PUSH/PULL, numbered by `seq` without gaps; a gap is E_PROTOCOL.', events],
  ['blobs', 'Blobs', 'PUSH/PULL on a socket of its own; tensors follow the envelope.', blobs],
];

interface Schema {
  readonly type?: string | readonly string[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly prefixItems?: readonly Schema[];
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly additionalProperties?: Schema | boolean;
  readonly description?: string;
  readonly minimum?: number;
}

/** docs/protocol.md, from the messages and their examples. */
export function protocolDocument(): string {
  return [
    '# Wire protocol, version 1',
    '',
    'Generated from `src/protocol/messages.ts`; a test compares. Node starts the sidecar, binds three sockets in a private folder and',
    'writes one line to its stdin; the sidecar connects and says `hello`. Each message is an envelope (a msgpack map), then the bytes of',
    `its tensors as raw frames of at most ${frameBytes} bytes: little-endian, C order, split where a tensor is longer, none for zero bytes.`,
    'Whole numbers lie in [0, 2^32); amounts of bytes and seconds are floats. Unknown fields and types are refused by both sides.',
    'The sha256 of `schema/protocol.v1.json` is part of the handshake.',
    '',
    '## Start line',
    '',
    ...fields(startLine),
    '## Envelope',
    '',
    ...fields(envelope),
    ...groups.flatMap(([group, title, text, types]) => [
      `## ${title}`,
      '',
      text,
      '',
      ...Object.entries(types).flatMap(([type, schema]) => message(group, type, schema)),
    ]),
  ].join('\n');
}

function message(group: Group, type: string, schema: z.ZodType): string[] {
  const [bytes = new Uint8Array()] = exampleFrames(group, type, examples[group][type]);
  return [
    `### ${type}`,
    '',
    ...fields(schema),
    'The envelope of an example, as Node writes it:',
    '',
    '```',
    ...hexLines(bytes),
    '```',
    '',
  ];
}

function fields(type: z.ZodType): string[] {
  const schema = z.toJSONSchema(type, { unrepresentable: 'any' }) as Schema;
  const lines = schema.oneOf ? schema.oneOf.flatMap(option => [...list(option), '']) : [...list(schema), ''];
  return [...(schema.description ? [schema.description, ''] : []), ...lines];
}

function list({ properties = {}, required = [] }: Schema): string[] {
  const entries = Object.entries(properties);
  if (entries.length === 0) return ['No fields.'];
  return entries.map(([name, schema]) => {
    const note = schema.description ? `: ${schema.description}` : '';
    return `* \`${name}\`${required.includes(name) ? '' : ' (optional)'} ${kind(schema)}${note}`;
  });
}

function kind(schema: Schema): string {
  if ('const' in schema) return `\`${JSON.stringify(schema.const)}\``;
  if (schema.enum) return schema.enum.map(value => `\`${String(value)}\``).join(' | ');
  const options = schema.anyOf ?? schema.oneOf;
  if (options) return options.map(kind).join(' | ');
  if (Array.isArray(schema.type)) return schema.type.join(' | ');
  if (schema.prefixItems) return `[${schema.prefixItems.map(kind).join(', ')}]`;
  if (schema.type === 'array') return `list of ${kind(schema.items ?? {})}`;
  if (schema.properties) {
    const inner = Object.entries(schema.properties).map(([name, value]) => `${name}: ${kind(value)}`);
    return `{${inner.join(', ')}}`;
  }
  if (schema.type === 'object') return `map of ${kind((schema.additionalProperties as Schema | undefined) ?? {})}`;
  return typeof schema.type === 'string' ? schema.type : 'anything';
}

/** 32 bytes a line: hex, then text. */
function hexLines(bytes: Uint8Array): string[] {
  const lines: string[] = [];
  for (let at = 0; at < bytes.length; at += 32) {
    const part = Buffer.from(bytes.subarray(at, at + 32));
    const text = [...part].map(byte => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : '.')).join('');
    lines.push(`${part.toString('hex').padEnd(64)}  ${text}`);
  }
  return lines;
}
