// What a browser makes of pages: deno run -A read_pages.mjs BROWSER PAGE...
// Prints a list with, for each page: requests that leave it, pictures that do not load or say nothing of
// themselves, messages of the console, and what axe finds wrong with contrast, texts and structure.

import axe from "npm:axe-core";
import puppeteer from "npm:puppeteer-core";

const [browserPath, ...pages] = Deno.args;
const browser = await puppeteer.launch({
  executablePath: browserPath,
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
});
const found = [];
for (const path of pages) {
  const page = await browser.newPage();
  const own = new URL(`file://${path}`).href;
  const requests = [], messages = [];
  page.on("request", (one) => {
    if (one.url() !== own && !one.url().startsWith("data:")) requests.push(one.url());
  });
  page.on("console", (one) => messages.push(one.text()));
  page.on("pageerror", (one) => messages.push(String(one)));
  await page.goto(own, { waitUntil: "load" });
  const pictures = await page.evaluate(() =>
    Promise.all([...document.images].map(async (one) => {
      await one.decode().catch(() => null);
      return { alt: one.alt, width: one.naturalWidth, height: one.naturalHeight };
    }))
  );
  const scripts = await page.evaluate(() => document.scripts.length);
  await page.evaluate(() => document.querySelectorAll("details").forEach((one) => one.open = true));
  await page.evaluate(axe.source);
  const violations = await page.evaluate(async () => {
    const said = await globalThis.axe.run(document, { resultTypes: ["violations"] });
    return said.violations.map((one) => `${one.id}: ${one.help}: ${one.nodes[0].html.slice(0, 120)}`);
  });
  found.push({ path, requests, messages, pictures, scripts, violations });
  await page.close();
}
await browser.close();
console.log(JSON.stringify(found));
