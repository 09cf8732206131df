#!/usr/bin/env node
// Only syntax that every Node can parse, as script or as module: it has to run far enough to say what is wrong.
var version = process.versions.node.split('.').map(Number);
var major = version[0];
var minor = version[1];
var supported = (major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major >= 24;

function refuse(what, fix) {
  process.stderr.write(what + '\n' + fix + '\n');
  process.exitCode = 3;
}

if (!supported) {
  refuse(
    'E_NODE_VERSION: rcm-bridge needs Node 20.19 or newer, 22.12 or newer, or 24 and later; this is Node ' +
      process.versions.node +
      '.',
    'Install one of them and run the command again.',
  );
} else {
  import('../dist/cli/main.js').then(
    cli => cli.main(process.argv.slice(2)),
    error => {
      var notBuilt = error && error.code === 'ERR_MODULE_NOT_FOUND' && /dist.cli.main\.js/.test(String(error.message));
      if (!notBuilt) throw error;
      refuse('E_NOT_BUILT: this copy of rcm-bridge is not built: dist/ is missing.', 'Run: npm ci && npm run build');
    },
  );
}
