// The command that asks from a terminal what the page asks.
const address = (path) => new URL(path, location.href).href;
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
// Inside curl's double quotes and the shell's single quotes, so that any file name is taken literally.
const upload = (field, name) => `  -F ${quoted(`${field}=@"${name.replace(/[\\"]/g, "\\$&")}"`)}`;
const command = (options, bearing, path) => [`curl${options}`, ...(bearing ? ['  -H "Authorization: Bearer $TOKEN"'] : []), path].join(" \\\n");

export function imagesCommand(names, bearing) {
  const fields = (names.length ? names : ["image.png"]).map((name) => upload("frames", name));
  return command("", bearing, [...fields, `  ${address("v1/recognize")}`].join(" \\\n"));
}

export function clipCommand(name, boxes, bearing) {
  // As --form-string, for -F takes what follows a semicolon for the type of the field.
  const fields = [upload("clip", name), ...(boxes ? [`  --form-string ${quoted(`boxes=${boxes}`)}`] : [])];
  return command(" -N", bearing, [...fields, `  ${address("v1/video")}`].join(" \\\n"));
}
