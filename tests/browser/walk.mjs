// An operator's way through the console, in a real browser: find the group, plan, start, watch; reveal a body; hold and
// discard with a reason; see it in the audit log. Then every page by axe, light and dark, wide and narrow.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const base = process.env.CONSOLE.replace(/\/$/, "");
const shots = process.env.SHOTS;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({ executablePath: process.env.BROWSER, args: ["--no-sandbox"] });
let checks = 0;
const ok = (value, what) => {
  assert.ok(value, what);
  checks += 1;
};

/** A page that reports what it is refused; a breach of the policy is such a thing. */
const open = async (options) => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.refused = [];
  page.on("console", (message) => message.type() === "error" && page.refused.push(message.text()));
  return page;
};
const shoot = async (page, name) => {
  if (!shots) return;
  // The bar at the top stays where the page was scrolled to.
  await page.evaluate(() => window.scrollTo(0, 0));
  await page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
};

/** The way of an operator; the addresses of the pages that they saw. */
const walk = async (page) => {
  await page.goto(`${base}/`);
  await page.locator("[data-live=groups] a.t", { hasText: "voucher" }).waitFor({ timeout: 60_000 }).catch(() => {});
  await page.reload();
  await shoot(page, "overview");
  await page.locator("[data-live=groups] a.t", { hasText: "voucher" }).click();
  const group = new URL(page.url()).pathname;
  const open = Number((await page.locator(".sum li[data-term]").first().getAttribute("data-term")));
  ok(open > 0, "the group has open letters");
  // A dry run leaves out what failed in its last seconds.
  for (let tries = 0; tries < 20 && (await page.locator(".confirm button.go").count()) === 0; tries += 1) {
    await page.waitForTimeout(1_000);
    await page.reload();
  }
  await page.fill("input[name=canary]", "1");
  await page.fill("input[name=because]", "a try");
  await shoot(page, "group");
  // A letter that died before the dry run and was collected after it brings the plan back, with the new sum.
  for (let tries = 0; tries < 3 && !page.url().includes("/redrives/"); tries += 1) {
    await page.locator(".confirm button.go").click();
    await page.locator(".progress, .plan [role=alert]").first().waitFor();
  }
  const redrive = new URL(page.url()).pathname;
  await page.getByText("stopped itself").waitFor({ timeout: 60_000 });
  ok(true, "the canary fails again, and live updates show that the redrive stopped itself");
  await shoot(page, "redrive");

  await page.goto(base + group);
  await page.locator("#letters a.t").last().click();
  const letter = new URL(page.url()).pathname;
  ok(!(await page.content()).includes("cents"), "no body before it is asked for");
  await page.getByRole("button", { name: /Reveal/ }).click();
  ok((await page.locator("pre.shown").textContent()).includes("cents"), "the body after that");
  await shoot(page, "letter");

  await page.goto(base + letter);
  await page.getByText("End the wait…").click();
  const wait = page.locator("form[action$='/end']");
  await wait.locator("input[value=release]").check();
  await wait.locator("textarea").fill("nothing waits for a voucher");
  await shoot(page, "key");
  await wait.getByRole("button").click();
  ok((await page.locator("#history").textContent()).includes("release-asked"), "the question is in the history");
  for (let tries = 0; tries < 60 && !(await page.content()).includes("key-released"); tries += 1) {
    await page.waitForTimeout(500);
    await page.reload();
  }
  ok((await page.locator("#history").textContent()).includes("key-released"), "and the consumer's answer");
  ok(!(await page.content()).includes("no answer yet"), "so that nothing is pending");
  await page.goto(`${base}/redrives`);
  ok((await page.locator("main").textContent()).includes("done"), "the demo's own redrive came to its end");
  await page.locator(".head a[href='/rules']").click();
  await page.getByText("watching").waitFor({ timeout: 60_000 });
  await page.locator("[data-live=rules] a.n").first().click();
  ok(Number(await page.locator("[data-total]").getAttribute("data-total")) > 0, "what a rule would send is listed");
  await page.goto(`${base}/held`);
  ok((await page.locator("[data-live=told]").textContent()).includes("payments"), "the consumer has reported what it holds");

  await page.goto(`${base}${group}#changes`);
  await page.getByText(/^Discard .* letters?…$/).click();
  const discard = page.locator("form[action='/dead-letters/discard']");
  await discard.locator("textarea").fill("nobody sells vouchers any more");
  await discard.getByRole("button").click();
  ok((await page.locator("h1").textContent()).match(/letters? discarded/), "the rest is discarded");
  await page.goto(`${base}/audit`);
  const audit = await page.locator("main").textContent();
  for (const action of ["redrive.start", "redrive.stopped", "letters.reveal", "held.release", "letters.discard"]) ok(audit.includes(action), action);
  // A plan that comes back does so with a status that the browser reports.
  const refused = page.refused.filter((text) => !text.includes("409"));
  assert.deepEqual(refused, [], "nothing was refused by the policy");
  return ["/", "/groups", group, "/dead-letters?status=open", letter, "/redrives", redrive, "/rules", "/held", "/outboxes", "/consumers", "/audit"];
};

/** Every page by axe, and none is wider than the screen. */
const inspect = async (paths, colorScheme, width) => {
  // The policy would keep axe out.
  const page = await open({ colorScheme, viewport: { width, height: 844 }, bypassCSP: true });
  for (const path of paths) {
    await page.goto(base + path);
    await page.evaluate(() => document.querySelectorAll("details").forEach((part) => (part.open = true)));
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const bad = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
    ok(bad.length === 0, `${path} ${colorScheme} ${width}: ${JSON.stringify(bad.map(({ id, nodes }) => [id, nodes[0].html]))}`);
    const beyond = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    ok(beyond <= 0, `${path} ${colorScheme} ${width}: ${beyond} px beyond the screen`);
    await shoot(page, `${colorScheme}-${width}${path.split("?")[0].split("/").slice(0, 2).join("-")}`);
  }
  await page.context().close();
};

try {
  const paths = await walk(await open({}));
  for (const scheme of ["light", "dark"]) for (const width of [1280, 840, 390, 360]) await inspect(paths, scheme, width);
  const plain = await open({ javaScriptEnabled: false });
  for (const path of paths) ok((await plain.goto(base + path)).status() === 200, `${path} without a script`);
  console.log(`${checks} passed, 0 failed`);
} finally {
  await browser.close();
}
