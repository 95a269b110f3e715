// What llama.cpp makes of a GGUF file, through node-llama-cpp: `llamacpp.py` writes the job and reads the answers.
import {readFileSync, writeFileSync} from "node:fs";
import {Template} from "@huggingface/jinja";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [jobFile, answerFile, logitFile] = process.argv.slice(2);
const job = JSON.parse(readFileSync(jobFile, "utf8"));
const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: job.model, defaultContextFlashAttention: false});
const answers = {release: llama.llamaCppRelease.release, ids: job.texts.map(text => model.tokenize(text, false))};

const template = model.fileInfo.metadata.tokenizer?.chat_template;
if (template && job.messages) {
    const names = {bos_token: model.tokens.bosString, eos_token: model.tokens.eosString};
    answers.chat = model.tokenize(new Template(template).render({messages: job.messages, add_generation_prompt: true, ...names}), true);
}

const context = await model.createContext({
    contextSize: job.context, batchSize: job.context, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
    lora: job.lora && {adapters: [{filePath: job.lora}]}
});
const sequence = context.getSequence();
const rows = [];

// Evaluate tokens after those that the sequence holds, and keep the logits after each; return the likeliest token after the last.
async function evaluate(tokens, kept) {
    const generateNext = {token: true, logits: kept, options: {temperature: 0}};
    const outputs = await sequence.controlledEvaluate(tokens.map(token => [token, {generateNext}]));
    for (const {next} of kept ? outputs : []) {
        const row = new Float32Array(next.logits.size);
        for (const [token, logit] of next.logits) row[token] = logit;
        rows.push(Buffer.from(row.buffer));
    }
    return outputs.at(-1).next.token;
}

answers.next = [];
for (const [i, prompt] of job.prompts.entries()) {
    await sequence.clearHistory();
    const tokens = [await evaluate(prompt, true)];
    while (tokens.length < job.next[i]) tokens.push(await evaluate(tokens.slice(-1), false));
    answers.next.push(tokens);
}
writeFileSync(answerFile, JSON.stringify(answers));
writeFileSync(logitFile, Buffer.concat(rows));
process.exit(0);
