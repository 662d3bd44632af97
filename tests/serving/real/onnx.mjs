// Runs an ONNX file in onnxruntime-web: node onnx.mjs ADDRESS SEED ...
import { chromium } from "playwright-core";

const [address, ...seeds] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage();
await page.goto(`${address}/empty.html`);
await page.addScriptTag({ url: "/node_modules/onnxruntime-web/dist/ort.wasm.min.js" });
const values = await page.evaluate(async (texts) => {
  ort.env.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create("/vae.onnx");
  const numbers = BigInt64Array.from(texts.map((text) => BigInt(text)));
  const tensor = new ort.Tensor("int64", numbers, [numbers.length]);
  const { images } = await session.run({ seeds: tensor });
  return Array.from(images.data);
}, seeds);
console.log(values.join("\n"));
await browser.close();
