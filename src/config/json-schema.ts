import { z } from 'zod';
import { configSchema } from './blocks/index.ts';
import { isDocument, type Path } from './layers.ts';

/** A node of a JSON Schema, as far as this package reads it. */
export interface SchemaNode {
  readonly type?: string | readonly string[];
  readonly description?: string;
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly anyOf?: readonly SchemaNode[];
  readonly oneOf?: readonly SchemaNode[];
  readonly properties?: Readonly<Record<string, SchemaNode>>;
  readonly items?: SchemaNode | false;
  readonly prefixItems?: readonly SchemaNode[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly exclusiveMaximum?: number;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly pattern?: string;
}

/** The schema of config files as JSON Schema: schema/config.v1.json, which editors use. */
export function configJsonSchema(): SchemaNode {
  const { properties, ...rest } = z.toJSONSchema(configSchema, { io: 'input' }) as SchemaNode;
  const { version, ...blocks } = properties ?? {};
  return {
    ...rest,
    title: 'rcm-bridge config',
    description: 'x-mayChangeOnResume says whether `resume --set` may give a key another value.',
    properties: {
      ...(version === undefined ? {} : { version }),
      extends: {
        type: 'string',
        description: 'A preset, or a file relative to this one; merged key by key, lists are replaced',
      },
      ...blocks,
    },
  } as SchemaNode;
}

/** The schema of a resolved config, in which every key is there. */
export const resolvedJsonSchema = (): SchemaNode => z.toJSONSchema(configSchema, { io: 'output' }) as SchemaNode;

/** The node of a key path; in a union, the member that has the document's `kind`. */
export function schemaAt(root: SchemaNode, path: Path, document: unknown): SchemaNode | undefined {
  let node: SchemaNode | undefined = root;
  let value = document;
  for (const key of path) {
    const members: readonly SchemaNode[] = node ? membersOf(node) : [];
    const kind = isDocument(value) ? value.kind : undefined;
    const object =
      members.find(member => kind !== undefined && member.properties?.kind?.const === kind) ??
      members.find(member => member.properties);
    const list: SchemaNode | undefined = members.find(member => member.type === 'array');
    node = object?.properties?.[key] ?? (list?.prefixItems?.[Number(key)] || list?.items || undefined);
    value = Array.isArray(value) ? value[Number(key)] : isDocument(value) ? value[key] : undefined;
  }
  return node;
}

/** The alternatives of a node; itself if there is only one. */
export function membersOf(node: SchemaNode): readonly SchemaNode[] {
  if (Array.isArray(node.type)) return node.type.map((type: string) => ({ ...node, type }));
  return (node.anyOf ?? node.oneOf)?.flatMap(membersOf) ?? [node];
}

/** Key paths that end with the name, such as `schedule.steps` for `steps`. */
export function pathsNamed(root: SchemaNode, name: string): readonly string[] {
  const found: string[] = [];
  const visit = (node: SchemaNode, path: Path): void => {
    for (const member of membersOf(node)) {
      for (const [key, inner] of Object.entries(member.properties ?? {})) {
        if (key === name) found.push([...path, key].join('.'));
        visit(inner, [...path, key]);
      }
    }
  };
  visit(root, []);
  return [...new Set(found)];
}

/** What a key takes, in words: "a whole number of at least 1". */
export function expectation(node: SchemaNode): string {
  const members = membersOf(node);
  return members.length > 1 ? [...new Set(members.map(expectationOf))].join(' or ') : expectationOf(node);
}

function expectationOf(node: SchemaNode): string {
  if (node.const !== undefined) return String(node.const);
  if (node.enum) return node.enum.length === 1 ? String(node.enum[0]) : `one of ${node.enum.join(', ')}`;
  switch (node.type) {
    case 'integer':
      return `a whole number${boundsOf(node)}`;
    case 'number':
      return `a number${boundsOf(node)}`;
    case 'boolean':
      return 'true or false';
    case 'null':
      return 'null';
    case 'string':
      return node.pattern ? `text of the form ${node.pattern}` : 'text';
    case 'array':
      return listOf(node);
    default:
      return 'a block of keys';
  }
}

function boundsOf(node: SchemaNode): string {
  const largest =
    node.maximum !== undefined && node.maximum < Number.MAX_SAFE_INTEGER ? ` and at most ${node.maximum}` : '';
  const below = node.exclusiveMaximum === undefined ? largest : ` and below ${node.exclusiveMaximum}`;
  if (node.exclusiveMinimum !== undefined) return ` above ${node.exclusiveMinimum}${below}`;
  if (node.minimum !== undefined && node.minimum > Number.MIN_SAFE_INTEGER)
    return ` of at least ${node.minimum}${below}`;
  return below.replace(' and', '');
}

function listOf(node: SchemaNode): string {
  if (node.prefixItems)
    return `a list of ${node.prefixItems.length} values, each ${expectation(node.prefixItems[0] ?? {})}`;
  return node.items ? `a list, each item ${expectation(node.items)}` : 'a list';
}
