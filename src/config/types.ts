import type { RcmConfigFile, RcmConfigOutput } from './blocks/index.ts';

export type DeepReadonly<T> = T extends readonly (infer Item)[]
  ? readonly DeepReadonly<Item>[]
  : T extends object
    ? { readonly [Key in keyof T]: DeepReadonly<T[Key]> }
    : T;

/** A whole config: every default filled in, paths absolute. */
export type RcmConfig = DeepReadonly<RcmConfigOutput>;

/** What a config file or `bridge.distill({ ... })` may hold; everything else comes from `extends` or the defaults. */
export type RcmConfigInput = DeepReadonly<RcmConfigFile> & {
  /** A preset, or a file relative to this one. */
  readonly extends?: string;
};

/** Where a value came from. `where` names the file, the flag or the variable. */
export interface Origin {
  readonly kind: 'flag' | 'env' | 'file' | 'extends' | 'default';
  readonly where?: string;
  /** From 1, as editors count. */
  readonly line?: number;
  readonly column?: number;
}

export interface ResolvedConfig {
  readonly config: RcmConfig;
  /** By key path of each value, such as `schedule.steps`; a list counts as one value. */
  readonly origins: Readonly<Record<string, Origin>>;
  /** What was asked for: a preset, an absolute path, or `object`. */
  readonly source: string;
}

export interface LoadConfigOptions {
  /** Relative paths in the config are relative to this folder. */
  readonly cwd: string;
  /** `key.path=value` pairs whose values are read as YAML, or an object of key paths and values. */
  readonly set?: readonly string[] | Readonly<Record<string, unknown>>;
  /** Read for RCM_SET_<n>. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Type-check a config written in TypeScript. */
  readonly typeCheck?: boolean;
}
