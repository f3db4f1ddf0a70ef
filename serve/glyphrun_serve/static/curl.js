// The command that asks from a terminal what the page asks.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
// With a query it is quoted, for some shells take its ? for a pattern of file names.
function address(path, model) {
  const { href } = new URL(path, location.href);
  return model ? quoted(`${href}?model=${encodeURIComponent(model).replaceAll("%3A", ":")}`) : href;
}
// Inside curl's double quotes and the shell's single quotes, so that any file name is taken literally.
const upload = (field, name) => `  -F ${quoted(`${field}=@"${name.replace(/[\\"]/g, "\\$&")}"`)}`;
const command = (options, bearing, path) => [`curl${options}`, ...(bearing ? ['  -H "Authorization: Bearer $TOKEN"'] : []), path].join(" \\\n");

export function imagesCommand(names, model, bearing) {
  const fields = (names.length ? names : ["image.png"]).map((name) => upload("frames", name));
  return command("", bearing, [...fields, `  ${address("v1/recognize", model)}`].join(" \\\n"));
}

export function clipCommand(name, boxes, model, bearing) {
  // As --form-string, for -F takes what follows a semicolon for the type of the field.
  const fields = [upload("clip", name), ...(boxes ? [`  --form-string ${quoted(`boxes=${boxes}`)}`] : [])];
  return command(" -N", bearing, [...fields, `  ${address("v1/video", model)}`].join(" \\\n"));
}
