// SPDX-License-Identifier: Apache-2.0
//
// duckdb.cjs FOLDER SQL - what DuckDB answers, a JSON object a row and line; FOLDER has its
// node_modules. Numbers of 64 bits are texts.
const { createRequire } = require("node:module");
const { DuckDBInstance } = createRequire(`${process.argv[2]}/`)("@duckdb/node-api");

(async () => {
  const db = await (await DuckDBInstance.create(":memory:")).connect();
  const answer = await db.runAndReadAll(process.argv[3]);
  for (const row of answer.getRowObjectsJson()) console.log(JSON.stringify(row));
})().catch((err) => {
  console.error(err.message);
  process.exitCode = 1;
});
