import Foundation
import XCTest

#if canImport(SQLite3)
    import SQLite3
#else
    import CSQLite
#endif

/// Change a database, to see what the app makes of it.
func execute(_ sql: String, in file: URL) throws {
    var database: OpaquePointer?
    defer { sqlite3_close_v2(database) }
    XCTAssertEqual(sqlite3_open(file.path, &database), SQLITE_OK)
    XCTAssertEqual(sqlite3_exec(database, sql, nil, nil, nil), SQLITE_OK)
}
