export async function classify(ort, model, { data, width, height }) {
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const rgb = Uint8Array.from({ length: 3 * width * height }, (_, i) => data[4 * Math.floor(i / 3) + (i % 3)]);
  const images = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
  return (await session.run({ images })).probabilities.data;
}
