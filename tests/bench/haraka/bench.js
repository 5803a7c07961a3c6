// Takes mail for anybody and stores it in a Maildir, synced before the 250.
"use strict";
const fs = require("node:fs");
let number = 0;

exports.hook_rcpt = (next) => next(OK);

exports.hook_queue = (next, connection) => {
    const name = `${Date.now()}.${process.pid}_${++number}.bench`;
    const box = process.env.BENCH_MAILDIR;
    // flush: fsync before close
    const file = fs.createWriteStream(`${box}/tmp/${name}`, { flush: true });
    file.on("error", () => next(DENYSOFT));
    file.on("close", () =>
        fs.rename(`${box}/tmp/${name}`, `${box}/new/${name}`, (error) => next(error ? DENYSOFT : OK)),
    );
    connection.transaction.message_stream.pipe(file);
};
// An authenticated message comes by this hook instead.
exports.hook_queue_outbound = exports.hook_queue;
