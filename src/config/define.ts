import type { RcmConfigInput } from './types.ts';

export type { RcmConfig, RcmConfigInput } from './types.ts';

/**
 * Gives a config file written in TypeScript its types; returns the config unchanged.
 *
 * @example
 * ```ts
 * import { defineConfig } from 'rcm-bridge/config';
 * export default defineConfig({ extends: 'digits-rcm', name: 'mine', schedule: { steps: 500 } });
 * ```
 */
export const defineConfig = (config: RcmConfigInput): RcmConfigInput => config;
