/**
 * The forked child that owns pythonia. pythonia starts Python when it is imported, never lets its process end by
 * itself, and loses that process to one NaN (spec/bridge.md section 2.3); here all of that can hurt nobody else.
 * Started with a channel it serves `openPython`; started as `repl` it is Node's own prompt with `python` at hand.
 */
import { join } from 'node:path';
import repl from 'node:repl';
import { packageRoot } from '../package-root.ts';
import type { HostReply, HostRequest } from './interactive-messages.ts';

interface PythonObjects {
  handle(request: string): Promise<string>;
}

interface Pythonia {
  // biome-ignore lint/suspicious/noExplicitAny: pythonia gives every Python object as an untyped proxy.
  python: ((module: string) => Promise<any>) & { exit(): void };
}

const { python } = (await import('pythonia')) as unknown as Pythonia;

async function serve(send: (reply: HostReply) => void): Promise<void> {
  const module = await python(join(packageRoot(), 'py', 'interactive_objects.py'));
  const objects: PythonObjects = await module.open_objects();
  process.on('message', (message: HostRequest) => {
    objects.handle(message.request).then(
      text => send({ id: message.id, text: String(text) }),
      (error: unknown) =>
        send({ id: message.id, failed: error instanceof Error ? (error.stack ?? '') : String(error) }),
    );
  });
  process.on('disconnect', end);
  send({ id: 0, text: 'ready' });
}

function prompt(): void {
  process.stderr.write("Python is at hand: const torch = await python('torch'); await torch.__version__\n");
  const server = repl.start({ prompt: 'rcm> ', useGlobal: true });
  server.context.python = python;
  server.on('exit', end);
}

function end(): void {
  python.exit();
  process.exit(0);
}

if (process.argv[2] === 'repl') prompt();
else await serve(reply => process.send?.(reply));
