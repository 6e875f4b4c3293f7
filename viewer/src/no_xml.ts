/** Stands in for the XML library that vtk.js names; see vite.config.ts. */
const refuse = (): never => {
  throw new Error('this viewer reads no XML');
};

export const create = refuse;
export const convert = refuse;
export const fragment = refuse;
export default { create, convert, fragment };
