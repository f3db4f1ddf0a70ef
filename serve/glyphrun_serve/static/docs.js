const at = (id) => document.getElementById(id);

function element(tag, text, children = []) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  if (schema.contentMediaType || schema.format === "binary") return "file";
  if (schema.type === "object" && typeof schema.additionalProperties === "object" && schema.additionalProperties.type) {
    return `object of ${typeOf(schema.additionalProperties)}`;
  }
  return schema.type ?? "any";
}

function table(title, rows) {
  if (!rows.length) return [];
  const body = rows.map(([name, type, about]) => element("tr", "", [element("td", name), element("td", type), element("td", about)]));
  return [element("h3", title), element("table", "", body)];
}

function fields(schema, schemas) {
  const resolved = schema.$ref ? schemas[typeOf(schema)] : schema;
  const required = resolved.required ?? [];
  return Object.entries(resolved.properties ?? {}).flatMap(([name, field]) => {
    const inner = field.items ?? field;
    const nested = inner.properties ? inner : schemas[typeOf(inner)];
    const own = [name, typeOf(field), field.description ?? (required.includes(name) ? "" : "optional")];
    return [own, ...(nested ? fields(nested, schemas).map(([inner, ...rest]) => [`  ${name}.${inner}`, ...rest]) : [])];
  });
}

function operation(method, path, described, schemas) {
  const [bodyType, body] = Object.entries(described.requestBody?.content ?? {})[0] ?? [];
  const [answerType, answer] = Object.entries(described.responses["200"].content ?? {})[0] ?? [];
  const parameters = (described.parameters ?? []).map(({ name, schema, description }) => [
    name,
    typeOf(schema),
    description ?? `default ${schema.default}`,
  ]);
  return element("article", "", [
    element("h2", "", [element("b", method.toUpperCase()), path]),
    element("p", described.description),
    ...table("Query", parameters),
    ...(body ? table(`Body, ${bodyType}`, fields(body.schema, schemas)) : []),
    ...(answerType === "application/json" ? table("Answer", fields(answer.schema, schemas)) : [element("h3", `Answer, ${answerType}`)]),
  ]);
}

try {
  const { paths, components } = await (await fetch("openapi.json")).json();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, described] of Object.entries(methods)) {
      const shown = operation(method, path, described, components.schemas);
      shown.className = "card";
      at("operations").append(shown);
    }
  }
} catch {
  at("error").textContent = "The description of the API cannot be loaded; check that the server runs and load this page again.";
  at("error").hidden = false;
}
