import type { z } from 'zod';
import { RcmBridgeError } from '../errors/index.ts';
import { suggestNetwork } from '../models/registry.ts';
import { nearest } from '../nearest.ts';
import { configSchema, type RcmConfigOutput } from './blocks/index.ts';
import { findConflicts } from './conflicts.ts';
import { configJsonSchema, expectation, membersOf, pathsNamed, type SchemaNode, schemaAt } from './json-schema.ts';
import { type Document, describeOrigin, type Layer, originOf, type Path, valueAt } from './layers.ts';
import { findNotYet } from './not-yet.ts';

/** Checks the merged document and fills every default. Errors name the first problem; `details.problems` lists all. */
export function checkConfig(document: Document, layers: readonly Layer[]): RcmConfigOutput {
  const parsed = configSchema.safeParse(document);
  if (!parsed.success) throw describeIssues(parsed.error.issues, document, layers);
  const conflicts = findConflicts(parsed.data);
  const problems = conflicts.map(({ path, text, hint }) => at(layers, path, text, hint));
  if (problems.length > 0) throw configError(conflicts[0]?.code ?? 'E_CONFIG_VALUE', problems);
  const notYet = findNotYet(parsed.data).map(found =>
    at(
      layers,
      found.path,
      `${found.path.join('.')} takes only ${found.accepted} so far, not ${shown(found.value)}.`,
      'No other value has an effect in this version.',
    ),
  );
  if (notYet.length > 0) throw configError('E_CONFIG_NOT_YET', notYet);
  return parsed.data;
}

interface Problem {
  readonly path: string;
  readonly message: string;
  readonly hint: string;
}

function configError(
  code: 'E_CONFIG_VALUE' | 'E_CONFIG_UNKNOWN_KEY' | 'E_CONFIG_NOT_YET' | 'E_NETWORK_OVERRIDE' | 'E_NETWORK_SIZE',
  problems: readonly Problem[],
): RcmBridgeError {
  const first = problems[0] as Problem;
  const more = problems.length > 1 ? ` (${problems.length - 1} more)` : '';
  return new RcmBridgeError(code, `${first.message}${more}`, { hint: first.hint, details: { problems } });
}

/** A problem with where its value stands; a list item is found by its list. */
function at(
  layers: readonly Layer[],
  path: Path,
  text: string,
  hint: string,
  part: 'key' | 'value' = 'value',
): Problem {
  let origin = originOf(layers, path, part);
  for (let length = path.length - 1; origin.kind === 'default' && length > 0; length--) {
    origin = originOf(layers, path.slice(0, length), 'key');
  }
  const where = describeOrigin(origin);
  return { path: path.join('.'), message: where === '' ? text : `${where}: ${text}`, hint };
}

function describeIssues(
  issues: readonly z.core.$ZodIssue[],
  document: Document,
  layers: readonly Layer[],
): RcmBridgeError {
  const schema = configJsonSchema();
  const unknown = issues.flatMap(issue =>
    issue.code === 'unrecognized_keys'
      ? issue.keys.map(name => unknownKey(schema, asPath(issue.path), name, document, layers))
      : [],
  );
  if (unknown.length > 0) return configError('E_CONFIG_UNKNOWN_KEY', unknown);
  return configError(
    'E_CONFIG_VALUE',
    issues.map(issue => wrongValue(schema, asPath(issue.path), document, layers)),
  );
}

const asPath = (path: readonly PropertyKey[]): Path => path.map(String);

function unknownKey(
  schema: SchemaNode,
  parent: Path,
  name: string,
  document: Document,
  layers: readonly Layer[],
): Problem {
  const path = [...parent, name];
  const node = schemaAt(schema, parent, document) ?? schema;
  const kind = valueAt(document, [...parent, 'kind']);
  const block =
    membersOf(node).find(member => kind !== undefined && member.properties?.kind?.const === kind) ?? membersOf(node)[0];
  const known = Object.keys(block?.properties ?? {});
  const close = nearest(name, known);
  const elsewhere = close === undefined && kind === undefined ? pathsNamed(schema, name) : [];
  const hint =
    close !== undefined
      ? `Did you mean ${[...parent, close].join('.')}?`
      : elsewhere.length > 0
        ? `Did you mean ${elsewhere.slice(0, 3).join(' or ')}?`
        : `Keys of ${parent.length > 0 ? parent.join('.') : 'a config'}: ${known.join(', ')}.`;
  return at(layers, path, `unknown key ${path.join('.')}.`, hint, 'key');
}

function wrongValue(schema: SchemaNode, path: Path, document: Document, layers: readonly Layer[]): Problem {
  const node = schemaAt(schema, path, document) ?? {};
  const value = itemAt(document, path);
  const name = path.join('.');
  const text =
    value === undefined
      ? `${name} is missing; it takes ${expectation(node)}.`
      : `${name} takes ${expectation(node)}, not ${shown(value)}.`;
  const words = membersOf(node).flatMap(member => member.enum ?? (member.const === undefined ? [] : [member.const]));
  const suggest = name === 'model.name' ? suggestNetwork : (given: string) => nearest(given, words.map(String));
  const close = typeof value === 'string' ? suggest(value) : undefined;
  return at(
    layers,
    path,
    text,
    close === undefined ? `${name}: ${node.description ?? 'see schema/config.v1.json'}.` : `Did you mean ${close}?`,
  );
}

/** Unlike `valueAt`, also goes into lists. */
const itemAt = (document: unknown, path: Path): unknown =>
  path.reduce<unknown>(
    (value, key) => (typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[key] : undefined),
    document,
  );

const shown = (value: unknown): string => {
  const text = typeof value === 'number' ? String(value) : (JSON.stringify(value) ?? String(value));
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
};
