import { defineConfig } from 'vite';

export default defineConfig({
  base: './',
  resolve: {
    // vtk.js can read XML, for which it brings a library that needs parts of node.js; nothing here is XML.
    alias: { xmlbuilder2: '/src/no_xml.ts' },
  },
  build: {
    target: 'es2022',
    outDir: '../src/mammoseg/apps/server/static',
    emptyOutDir: true,
    assetsInlineLimit: 0,
    license: { fileName: 'licenses.md' },
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 4000,
    rolldownOptions: {
      output: {
        // Plain names: a rebuild replaces files in place, and the server says by ETag whether they are the same.
        entryFileNames: 'assets/[name].js',
        chunkFileNames: 'assets/[name].js',
        assetFileNames: 'assets/[name][extname]',
        // The library in a file of its own: it changes far less often than the viewer.
        codeSplitting: { groups: [{ name: 'cornerstone', test: /node_modules/ }] },
      },
    },
  },
});
