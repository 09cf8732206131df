/** Bytes as people read them, in powers of ten. */
export function inGigabytes(bytes: number): string {
  const [size, unit] =
    bytes >= 1e12
      ? [bytes / 1e12, 'TB']
      : bytes >= 1e9
        ? [bytes / 1e9, 'GB']
        : bytes >= 1e6
          ? [bytes / 1e6, 'MB']
          : [bytes / 1e3, 'kB'];
  return `${size >= 100 ? Math.round(size) : Number(size.toPrecision(3))} ${unit}`;
}
