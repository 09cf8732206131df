import { isDocument, type Layer, originOf, type Path } from './layers.ts';
import type { Origin } from './types.ts';

/** The origin of every value of a resolved config, by key path. */
export function explainOrigins(config: unknown, layers: readonly Layer[]): Readonly<Record<string, Origin>> {
  const origins: Record<string, Origin> = {};
  const visit = (value: unknown, path: Path): void => {
    if (isDocument(value) && Object.keys(value).length > 0) {
      for (const [key, inner] of Object.entries(value)) visit(inner, [...path, key]);
      return;
    }
    origins[path.join('.')] = originOf(layers, path);
  };
  visit(config, []);
  return origins;
}
