import Foundation

#if canImport(SQLite3)
    import SQLite3
#else
    import CSQLite
#endif

/// A file of `pocketlm index`: paragraphs, ranked by bm25 of the system's SQLite (FTS5). See runtimes/search_index.py.
public final class FactIndex: PassageSource, @unchecked Sendable {
    // SQLite is asked to lock the connection itself (SQLITE_OPEN_FULLMUTEX); nothing here changes after init.
    public static let fileName = "facts.db"
    private static let schema = 2
    private static let from = """
        FROM passages_fts5 JOIN passages ON passages.id = passages_fts5.rowid JOIN files ON files.id = passages.file \
        WHERE passages_fts5 MATCH ? ORDER BY bm25(passages_fts5, 2.0, 1.0), passages.id LIMIT ?
        """

    public let name: String
    private let database: OpaquePointer

    /// - Throws: PocketError if the file is missing, no index, or one that this app does not read.
    public init(_ url: URL) throws {
        name = url.lastPathComponent
        var opened: OpaquePointer?
        let flags = SQLITE_OPEN_READONLY | SQLITE_OPEN_FULLMUTEX
        let code = sqlite3_open_v2(url.path, &opened, flags, nil)
        guard code == SQLITE_OK, let opened else {
            sqlite3_close_v2(opened)
            throw PocketError("\(name): cannot be opened (SQLite's error \(code)); copy it again")
        }
        database = opened
        // What the file's own schema would run is not trusted.
        sqlite3_exec(database, "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON", nil, nil, nil)
        let found = try rows("SELECT value FROM meta WHERE key = 'schema'", []) { $0.text(0) }.first.flatMap { Int($0) }
        guard found == Self.schema else {
            let advice = (found ?? 0) > Self.schema ? "update the app" : "make the index again with: pocketlm index"
            let number = found.map(String.init) ?? "unknown"
            throw PocketError("\(name): index schema \(number), this app reads \(Self.schema); \(advice)")
        }
    }

    deinit {
        sqlite3_close_v2(database)
    }

    public func search(_ words: [String], limit: Int) throws -> [Passage] {
        try find("SELECT passages.title, passages.text, files.path \(Self.from)", words, limit) {
            Passage(title: $0.text(0), text: $0.text(1), source: $0.text(2))
        }
    }

    /// All passages that hold any of the words, best first: bm25 made positive, a heading's words counted twice.
    func rank(_ words: [String]) throws -> [(id: Int, score: Double)] {
        try find("SELECT passages.id, -bm25(passages_fts5, 2.0, 1.0) \(Self.from)", words, -1) {
            (Int($0.integer(0)), $0.number(1))
        }
    }

    private func find<Entry>(
        _ sql: String, _ words: [String], _ limit: Int, _ make: (Row) -> Entry
    ) throws -> [Entry] {
        if words.isEmpty { return [] }
        let phrases = words.map { "\"\($0.replacingOccurrences(of: "\"", with: "\"\"", options: .literal))\"" }
        return try rows(sql, [phrases.joined(separator: " OR "), String(limit)], make)
    }

    private func rows<Entry>(_ sql: String, _ arguments: [String], _ make: (Row) -> Entry) throws -> [Entry] {
        var statement: OpaquePointer?
        defer { sqlite3_finalize(statement) }
        guard sqlite3_prepare_v2(database, sql, -1, &statement, nil) == SQLITE_OK else { throw damaged() }
        for (index, argument) in arguments.enumerated() {
            sqlite3_bind_text(statement, Int32(index + 1), argument, -1, copied)
        }
        var result: [Entry] = []
        while true {
            switch sqlite3_step(statement) {
            case SQLITE_ROW: result.append(make(Row(statement: statement)))
            case SQLITE_DONE: return result
            default: throw damaged()
            }
        }
    }

    private func damaged() -> PocketError {
        let reason = String(cString: sqlite3_errmsg(database)).split(whereSeparator: \.isNewline).joined(separator: " ")
        return PocketError("\(name): is no index or a damaged one (\(reason)); make it again with: pocketlm index")
    }
}

/// SQLITE_TRANSIENT: SQLite copies the text, which does not outlive the call.
private var copied: sqlite3_destructor_type { unsafeBitCast(-1, to: sqlite3_destructor_type.self) }

/// The row that a statement stands at.
private struct Row {
    let statement: OpaquePointer?

    func text(_ column: Int32) -> String { sqlite3_column_text(statement, column).map { String(cString: $0) } ?? "" }
    func integer(_ column: Int32) -> Int64 { sqlite3_column_int64(statement, column) }
    func number(_ column: Int32) -> Double { sqlite3_column_double(statement, column) }
}
