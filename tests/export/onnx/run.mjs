// node run.mjs FOLDER_OF_ONNXRUNTIME_WEB model.onnx RGBA_PIXELS SIDE: probabilities as JSON, by WebAssembly
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { classify } from "./classify.mjs";

const [folder, model, pixels, side] = process.argv.slice(2);
const ort = await import(pathToFileURL(`${folder}/dist/ort.wasm.min.mjs`).href);
ort.env.wasm.numThreads = 1;
const image = { data: readFileSync(pixels), width: Number(side), height: Number(side) };
console.log(JSON.stringify(Array.from(await classify(ort, new Uint8Array(readFileSync(model)), image))));
