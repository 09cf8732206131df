/** The range of protocol versions this side speaks. */
export const protocolRange = [1, 1] as const;

/** Largest frame of a tensor and largest message of the control socket, in bytes. */
export const frameBytes = 4 * 2 ** 20;

/** The highest version both sides speak, or undefined when the ranges do not overlap. */
export function agreeOnProtocol(theirs: readonly [number, number]): number | undefined {
  const highest = Math.min(protocolRange[1], theirs[1]);
  return highest >= Math.max(protocolRange[0], theirs[0]) ? highest : undefined;
}
