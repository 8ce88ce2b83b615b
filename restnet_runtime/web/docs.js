"use strict";
// /openapi.json for people, without the network that others' pages load themselves from.

const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 1));

function curl(path, method, type, example) {
  const url = `${location.origin}${path}`, verb = method === "GET" ? "" : ` -X ${method}`;
  if (!type) return `curl -sS${verb} '${url}'`;
  if (type === "multipart/form-data") return `curl -sS -F image=@seven.png '${url}'`;
  if (type.endsWith("json")) return `curl -sS${verb} -H 'Content-Type: ${type}' -d '${JSON.stringify(example)}' '${url}'`;
  return `curl -sS${verb} -H 'Content-Type: ${type === "image/*" ? "image/png" : type}' --data-binary @${type === "application/x-npy" ? "seven.npy" : "seven.png"} '${url}'`;
}

function fieldsOf(schema, all) {
  const found = schema && schema.$ref ? all[schema.$ref.split("/").pop()] : schema;
  if (!found || !found.properties) return null;
  const rows = Object.entries(found.properties).map(([name, field]) => {
    const types = (field.anyOf || [field]).map((one) => one.type || (one.$ref ? one.$ref.split("/").pop() : one.const !== undefined ? one.const : "any"));
    return html("tr", {}, html("th", { scope: "row" }, name), html("td", {}, types.join(" or ")), html("td", {}, field.description || ""));
  });
  return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Fields" }, html("table", {}, html("tbody", {}, ...rows)));
}

function bodyOf(path, method, operation, all) {
  const parts = [];
  for (const [type, content] of Object.entries((operation.requestBody || {}).content || {})) {
    parts.push(html("h3", {}, `Body: ${type}`));
    const fields = fieldsOf(content.schema, all);
    if (fields) parts.push(fields);
    for (const example of Object.values(content.examples || {})) {
      parts.push(html("p", { class: "muted" }, example.summary || ""), html("pre", { tabindex: "0" }, curl(path, method, type, example.value)));
    }
  }
  return parts.length ? parts : [html("pre", { tabindex: "0" }, curl(path, method))];
}

function card(path, method, operation, all) {
  const section = html("section", { class: "card doc" }, html("h2", {}, html("span", { class: "method" }, method), path), html("p", {}, operation.description || operation.summary || ""));
  const rows = (operation.parameters || []).map((one) => html("tr", {}, html("th", { scope: "row" }, one.name), html("td", {}, one.in), html("td", {}, one.description || ""), html("td", {}, one.example ?? "")));
  if (rows.length) section.append(html("h3", {}, "Parameters"), html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parameters" }, html("table", {}, html("tbody", {}, ...rows))));
  section.append(...bodyOf(path, method, operation, all));
  for (const [status, answer] of Object.entries(operation.responses || {})) {
    const schemas = Object.values(answer.content || {}).map((one) => one.schema).filter(Boolean);
    const named = schemas.flatMap((one) => one.anyOf || [one]);
    const tables = named.map((one) => fieldsOf(one, all)).filter(Boolean);
    const title = `${status} ${answer.description || ""}`;
    section.append(tables.length ? html("details", {}, html("summary", {}, title), ...tables) : html("p", { class: "muted" }, title));
  }
  return section;
}

async function show() {
  try {
    const answer = await fetch("/openapi.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const description = await answer.json(), all = (description.components || {}).schemas || {};
    const cards = Object.entries(description.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => card(path, method.toUpperCase(), operation, all)));
    byId("main").replaceChildren(html("p", { class: "doc" }, `${description.info.title} ${description.info.version}. ${description.info.summary || ""}`), ...cards);
  } catch (error) {
    byId("main").replaceChildren(html("p", { class: "card doc bad", role: "alert" }, `The description could not be read: ${error.message}. Load this page again.`));
  }
}
show();
