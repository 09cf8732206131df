/**
 * JSON as this project writes it: numbers that are not finite become the strings "NaN", "Infinity", "-Infinity"
 * (JSON has no such numbers and JSON.stringify would turn them into null).
 */
export function toJson(value: unknown, indent?: number): string {
  return JSON.stringify(value, (_key, item: unknown) => (typeof item === 'number' ? finiteOrName(item) : item), indent);
}

const finiteOrName = (value: number): number | string => (Number.isFinite(value) ? value : String(value));

const nonFinite: Readonly<Record<string, number>> = {
  NaN: Number.NaN,
  Infinity: Number.POSITIVE_INFINITY,
  '-Infinity': Number.NEGATIVE_INFINITY,
};

/** A number of a metric as it was before `toJson`; undefined for anything else. */
export function numberFromJson(value: unknown): number | undefined {
  if (typeof value === 'number') return value;
  return typeof value === 'string' ? nonFinite[value] : undefined;
}

/** The values of a metrics line, with numbers that are not finite as numbers again. */
export function numbersFromJson(values: unknown): Readonly<Record<string, number>> {
  if (typeof values !== 'object' || values === null) return {};
  const numbers: Record<string, number> = {};
  for (const [name, value] of Object.entries(values)) {
    const number = numberFromJson(value);
    if (number !== undefined) numbers[name] = number;
  }
  return numbers;
}

/** One line of an ndjson file, or undefined for a line cut off by a crash. */
export function parseLine(line: string): Readonly<Record<string, unknown>> | undefined {
  if (line.trim() === '') return undefined;
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}
