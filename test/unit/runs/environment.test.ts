import { describe, expect, test } from 'vitest';
import { withoutSecrets } from '../../../src/runs/environment.ts';

describe('the command line in environment.json', () => {
  test('holds no secrets', () => {
    const words = [
      'distill',
      '--set',
      'seed=1',
      '--api-key',
      'abc',
      '--token=abc',
      'WANDB_API_KEY=abc',
      'https://me:abc@host/x',
    ];
    expect(withoutSecrets(words)).toEqual([
      ...['distill', '--set', 'seed=1', '--api-key', '***', '--token=***', 'WANDB_API_KEY=***', 'https://***@host/x'],
    ]);
  });
});
