// Drives the page of a server: node page.mjs ADDRESS SCREENSHOT
import { chromium } from "playwright-core";

const [address, screenshot] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage({ viewport: { width: 390, height: 800 } });
const errors = [];
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type())) errors.push(message.text());
});
page.on("pageerror", (error) => errors.push(String(error)));
await page.goto(address);
await page.waitForSelector(".images img");
await page.getByLabel("Number of images").fill("3");
await page.getByLabel("Number of images").press("Enter");
await page.waitForFunction(() => document.querySelectorAll(".images img").length === 3);
const before = await page.getAttribute(".one img", "src");
await page.getByLabel("Dimension 1", { exact: true }).focus();
for (let step = 0; step < 20; step++) await page.keyboard.press("ArrowRight");
await page.waitForFunction(
  (source) => document.querySelector(".one img")?.src !== source, before);
await page.getByLabel("Prompt").fill("to be");
await page.getByLabel("Maximum tokens").fill("30");
await page.getByLabel("Seed", { exact: true }).fill("7");
await page.getByLabel("Seed", { exact: true }).press("Enter");
await page.waitForFunction(() =>
  document.querySelectorAll("section")[2].querySelector("pre")?.textContent.length === 35);
const text = await page.evaluate(() =>
  document.querySelectorAll("section")[2].querySelector("pre").textContent);
await page.screenshot({ path: screenshot, fullPage: true });
const files = await page.$$eval(".images img", (all) => all.map((one) => one.src));
const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
console.log(JSON.stringify({ errors, wide, files, text }));
await browser.close();
