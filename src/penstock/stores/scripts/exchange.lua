-- Read one row, or write it if it was not written since it was read.
-- KEYS[1]  a hash: t the terms, r the row
-- ARGV     to read: none; the reply is the server's time and the row.  To write: the terms and the row as they were
--          read, or '' for neither; those to write; seconds to keep. The reply is whether they were written.
local row = redis.pcall('HMGET', KEYS[1], 't', 'r')
if row.err then
  return string.find(row.err, 'WRONGTYPE', 1, true) and redis.error_reply('DAMAGED 1') or row
end
if #ARGV == 0 then
  local time = redis.call('TIME')
  return {time[1], time[2], row[1], row[2]}
end
if (row[1] or '') ~= ARGV[1] or (row[2] or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 't', ARGV[3], 'r', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 1
