import fc from 'fast-check';

type Schema = Readonly<Record<string, unknown>>;

const text = fc.oneof(fc.string({ unit: 'grapheme', maxLength: 12 }), fc.constantFrom('', 'ü', '😀', 'a\u0000b'));
/** Numbers a float field must carry unchanged; whole ones beyond 2^32 leave Node only as floats, see the codec. */
const real = fc.oneof(
  // msgpackr writes -0 as the integer 0: from Node the sign of zero is lost. Python's -0.0 arrives (golden frames).
  fc.double().map(value => value + 0),
  fc.constantFrom(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1, 2 ** 53 + 2, 1e300, 5e-324),
);
const representable = (value: number): boolean =>
  !Number.isSafeInteger(value) || (value >= -(2 ** 31) && value < 2 ** 32);
const leaf = fc.oneof(
  text,
  fc.boolean(),
  fc.constant(null),
  real.filter(representable),
  fc.constantFrom(-(2 ** 31), 2 ** 32 - 1),
);
const anything = fc.letrec(tie => ({
  value: fc.oneof({ depthSize: 'small' }, leaf, fc.array(tie('value'), { maxLength: 3 }), map(tie('value'))),
})).value;

/** A map without the key that JavaScript treats as something else. */
function map(value: fc.Arbitrary<unknown>): fc.Arbitrary<unknown> {
  return fc.dictionary(
    text.filter(key => key !== '__proto__'),
    value,
    { maxKeys: 4, noNullPrototype: true },
  );
}

/** Values that fit a schema of schema/protocol.v1.json. */
export function fitting(schema: Schema): fc.Arbitrary<unknown> {
  const options = (schema.anyOf ?? schema.oneOf) as readonly Schema[] | undefined;
  if (options) return fc.oneof(...options.map(fitting));
  if (Array.isArray(schema.type)) return fc.oneof(...schema.type.map(type => fitting({ ...schema, type })));
  if (schema.enum) return fc.constantFrom(...(schema.enum as unknown[]));
  if ('const' in schema) return fc.constant(schema.const);
  if (schema.type === undefined) return anything;
  return ofType(schema);
}

function ofType(schema: Schema): fc.Arbitrary<unknown> {
  switch (schema.type) {
    case 'string':
      return text;
    case 'boolean':
      return fc.boolean();
    case 'null':
      return fc.constant(null);
    case 'integer':
      return fc.oneof(
        fc.integer({ min: 0, max: 2 ** 32 - 1 }),
        fc.constantFrom(0, 127, 128, 65536, 2 ** 31, 2 ** 32 - 1),
      );
    case 'number':
      return bounded(schema);
    case 'array':
      if (schema.prefixItems) return fc.tuple(...(schema.prefixItems as Schema[]).map(fitting));
      return fc.array(fitting(schema.items as Schema), { maxLength: 3 });
    case 'object':
      return schema.properties ? object(schema) : map(fitting((schema.additionalProperties ?? {}) as Schema));
    default:
      throw new Error(`no values for ${JSON.stringify(schema)}`);
  }
}

function bounded(schema: Schema): fc.Arbitrary<unknown> {
  // zod's numbers are finite; `Real` is the custom type that takes NaN and infinities and has no description of its own.
  if (schema.minimum === undefined) return real.filter(representable).filter(Number.isFinite);
  return fc
    .oneof(
      fc.double({ min: 0, noNaN: true, noDefaultInfinity: true }).map(value => value + 0),
      fc.constant(5),
    )
    .filter(representable);
}

function object(schema: Schema): fc.Arbitrary<unknown> {
  const properties = schema.properties as Readonly<Record<string, Schema>>;
  const required = (schema.required ?? []) as string[];
  const values = Object.fromEntries(Object.entries(properties).map(([name, value]) => [name, fitting(value)]));
  return fc.record(values, { requiredKeys: required, noNullPrototype: true });
}

export { real };
